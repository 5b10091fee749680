"""Flags that llama-server renamed, merged or dropped over the years, in both directions."""

from __future__ import annotations

from collections.abc import Callable

from llamastream.engine.helptext import Help

Translation = Callable[[Help, "str | None"], "list[str] | None"]
"""From a build's flags and the value given to the flags to use: empty to drop it, None if it cannot be expressed."""


def _log_format(known: Help, value: str | None) -> list[str] | None:
    return ["--log-jsonl"] if value == "json" and known.has("--log-jsonl") else []


def _log_jsonl(known: Help, _: str | None) -> list[str] | None:
    return ["--log-format", "json"] if known.has("--log-format") else []


def _load(mode: str) -> Translation:
    return lambda known, _: ["--load-mode", mode] if known.has("--load-mode") else None


def _load_mode(known: Help, value: str | None) -> list[str] | None:
    old = {"auto": [], "mmap": [], "none": ["--no-mmap"], "mlock": ["--mlock"], "mmap+mlock": ["--mlock"]}
    flags = old.get(value or "")
    return flags if flags is not None and all(known.has(flag) for flag in flags) else None


def _renamed(*names: str) -> Translation:
    def translate(known: Help, value: str | None) -> list[str] | None:
        flag = known.first(*names)
        return None if flag is None else [flag] if value is None else [flag, value]

    return translate


def _default_now(known: Help, _: str | None) -> list[str] | None:
    return []


TRANSLATIONS: dict[str, Translation] = {
    "--log-format": _log_format,
    "--log-jsonl": _log_jsonl,
    "--mlock": _load("mlock"),
    "--mmap": _load("mmap"),
    "--no-mmap": _load("none"),
    "--direct-io": _load("dio"),
    "-dio": _load("dio"),
    "--load-mode": _load_mode,
    "-lm": _load_mode,
    "--draft": _renamed("--spec-draft-n-max", "--draft-max"),
    "--draft-n": _renamed("--spec-draft-n-max", "--draft-max", "--draft"),
    "--draft-max": _renamed("--spec-draft-n-max", "--draft"),
    "--draft-min": _renamed("--spec-draft-n-min"),
    "--draft-n-min": _renamed("--spec-draft-n-min", "--draft-min"),
    "--spec-draft-n-max": _renamed("--draft-max", "--draft"),
    "--spec-draft-n-min": _renamed("--draft-min"),
    "--ui": _renamed("--webui"),
    "--no-ui": _renamed("--no-webui"),
    "--webui": _renamed("--ui"),
    "--no-webui": _renamed("--no-ui"),
    "--embedding": _renamed("--embeddings"),
    "--embeddings": _renamed("--embedding"),
    "--rerank": _renamed("--reranking"),
    "--reranking": _renamed("--rerank"),
    "--temperature": _renamed("--temp"),
    "--n-predict": _renamed("--predict"),
    "--predict": _renamed("--n-predict"),
    "--cont-batching": _default_now,
    "-cb": _default_now,
    "--log-disable": _default_now,
}
TAKE_VALUE = {
    "--log-format", "--load-mode", "-lm", "--draft", "--draft-n", "--draft-max", "--draft-min", "--draft-n-min",
    "--spec-draft-n-max", "--spec-draft-n-min", "--temperature", "--n-predict", "--predict",
}  # fmt: skip
DROPPED = {
    "--log-format": "this llama-server has one log format only, and it is parsed either way",
    "--log-jsonl": "this llama-server has no JSON log; its text is parsed instead",
    "--load-mode": "it is what this llama-server does anyway",
    "-lm": "it is what this llama-server does anyway",
    "--cont-batching": "this llama-server always does it",
    "-cb": "this llama-server always does it",
    "--log-disable": "this llama-server has no such switch",
}
