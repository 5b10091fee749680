"""llama-server's flags as attributes of xllamacpp's CommonParams, for the embedded engine's `extra_args`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from llamastream.engine.flags import refuse_managed
from llamastream.errors import SettingError, UnsupportedFlagError

Setting = tuple[str, Any]
"""An attribute of CommonParams (dotted) and its value; enumerations by the name of their member."""


def _switch(attribute: str, value: object) -> Callable[[str], list[Setting]]:
    return lambda _: [(attribute, value)]


def _int(attribute: str) -> Callable[[str], list[Setting]]:
    return lambda text: [(attribute, int(text))]


def _float(attribute: str) -> Callable[[str], list[Setting]]:
    return lambda text: [(attribute, float(text))]


def _text(attribute: str) -> Callable[[str], list[Setting]]:
    return lambda text: [(attribute, text)]


def _choice(attribute: str, members: dict[str, Any]) -> Callable[[str], list[Setting]]:
    def convert(text: str) -> list[Setting]:
        if text not in members:
            raise ValueError(f"allowed are {', '.join(members)}")
        return [(attribute, members[text])]

    return convert


def _members(prefix: str, names: str) -> dict[str, str]:
    return {name: prefix + name.upper().replace("+", "_") for name in names.split()}


_LOAD_MODES = {
    "auto": "LLAMA_LOAD_MODE_AUTO", "none": "LLAMA_LOAD_MODE_NONE", "mmap": "LLAMA_LOAD_MODE_MMAP",
    "mlock": "LLAMA_LOAD_MODE_MLOCK", "mmap+mlock": "LLAMA_LOAD_MODE_MMAP_MLOCK", "dio": "LLAMA_LOAD_MODE_DIRECT_IO",
}  # fmt: skip
_CACHE_TYPES = _members("GGML_TYPE_", "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1")
_ON_OFF = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}

# flags without a value
SWITCHES: dict[str, Callable[[str], list[Setting]]] = {
    "--cache-idle-slots": _switch("cache_idle_slots", True),
    "--no-cache-idle-slots": _switch("cache_idle_slots", False),
    "--cache-prompt": _switch("cache_prompt", True),
    "--no-cache-prompt": _switch("cache_prompt", False),
    "--check-tensors": _switch("check_tensors", True),
    "--cont-batching": _switch("cont_batching", True),
    "--no-cont-batching": _switch("cont_batching", False),
    "--context-shift": _switch("ctx_shift", True),
    "--no-context-shift": _switch("ctx_shift", False),
    "--cors-credentials": _switch("cors_credentials", True),
    "--no-cors-credentials": _switch("cors_credentials", False),
    "--embeddings": _switch("embedding", True),
    "--reranking": lambda _: [("embedding", True), ("pooling_type", "LLAMA_POOLING_TYPE_RANK")],
    "--ignore-eos": _switch("sampling.ignore_eos", True),
    "--jinja": _switch("use_jinja", True),
    "--no-jinja": _switch("use_jinja", False),
    "--kv-unified": _switch("kv_unified", True),
    "--no-kv-unified": _switch("kv_unified", False),
    "--mlock": _switch("load_mode", _LOAD_MODES["mlock"]),
    "--mmap": _switch("load_mode", _LOAD_MODES["mmap"]),
    "--no-mmap": _switch("load_mode", _LOAD_MODES["none"]),
    "--offline": _switch("offline", True),
    "--perf": _switch("no_perf", False),
    "--no-perf": _switch("no_perf", True),
    "--prefill-assistant": _switch("prefill_assistant", True),
    "--no-prefill-assistant": _switch("prefill_assistant", False),
    "--props": _switch("endpoint_props", True),
    "--repack": _switch("no_extra_bufts", False),
    "--no-repack": _switch("no_extra_bufts", True),
    "--reuse-port": _switch("reuse_port", True),
    "--skip-chat-parsing": _switch("force_pure_content_parser", True),
    "--special": _switch("special", True),
    "--swa-full": _switch("swa_full", True),
    "--ui": _switch("ui", True),
    "--no-ui": _switch("ui", False),
    "--verbose": _switch("verbosity", 2147483647),
    "--warmup": _switch("warmup", True),
    "--no-warmup": _switch("warmup", False),
}

# flags with one value
VALUES: dict[str, Callable[[str], list[Setting]]] = {
    "--batch-size": _int("n_batch"),
    "--cache-reuse": _int("n_cache_reuse"),
    "--cache-type-k": _choice("cache_type_k", _CACHE_TYPES),
    "--cache-type-v": _choice("cache_type_v", _CACHE_TYPES),
    "--chat-template": _text("chat_template"),
    "--checkpoint-min-step": _int("checkpoint_min_step"),
    "--cors-headers": _text("cors_headers"),
    "--cors-methods": _text("cors_methods"),
    "--cors-origins": _text("cors_origins"),
    "--ctx-checkpoints": _int("n_ctx_checkpoints"),
    "--fit": _choice("fit_params", _ON_OFF),
    "--flash-attn": _choice(
        "flash_attn_type",
        {
            "on": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
            "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
            "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO",
        },
    ),
    "--frequency-penalty": _float("sampling.penalty_freq"),
    "--keep": _int("n_keep"),
    "--load-mode": _choice("load_mode", _LOAD_MODES),
    "--main-gpu": _int("main_gpu"),
    "--media-path": _text("media_path"),
    "--min-p": _float("sampling.min_p"),
    "--mmproj": _text("mmproj.path"),
    "--numa": _choice("numa", _members("GGML_NUMA_STRATEGY_", "distribute isolate numactl")),
    "--path": _text("public_path"),
    "--poll": _int("cpuparams.poll"),
    "--pooling": _choice("pooling_type", _members("LLAMA_POOLING_TYPE_", "none mean cls last rank")),
    "--predict": _int("n_predict"),
    "--presence-penalty": _float("sampling.penalty_present"),
    "--reasoning-format": _choice(
        "reasoning_format",
        {
            "none": "COMMON_REASONING_FORMAT_NONE",
            "auto": "COMMON_REASONING_FORMAT_AUTO",
            "deepseek": "COMMON_REASONING_FORMAT_DEEPSEEK",
            "deepseek-legacy": "COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY",
        },
    ),
    "--repeat-last-n": _int("sampling.penalty_last_n"),
    "--repeat-penalty": _float("sampling.penalty_repeat"),
    "--rope-freq-base": _float("rope_freq_base"),
    "--rope-freq-scale": _float("rope_freq_scale"),
    "--seed": _int("sampling.seed"),
    "--sleep-idle-seconds": _int("sleep_idle_seconds"),
    "--slot-prompt-similarity": _float("slot_prompt_similarity"),
    "--split-mode": _choice("split_mode", _members("LLAMA_SPLIT_MODE_", "none layer row tensor")),
    "--ssl-cert-file": _text("ssl_file_cert"),
    "--ssl-key-file": _text("ssl_file_key"),
    "--temp": _float("sampling.temp"),
    "--top-k": _int("sampling.top_k"),
    "--top-p": _float("sampling.top_p"),
    "--typical": _float("sampling.typ_p"),
    "--ubatch-size": _int("n_ubatch"),
    "--verbosity": _int("verbosity"),
    "--yarn-orig-ctx": _int("yarn_orig_ctx"),
}

# other names of the flags above
ALIASES = {
    "-b": "--batch-size", "-ub": "--ubatch-size", "-n": "--predict", "--n-predict": "--predict", "-fa": "--flash-attn",
    "-cb": "--cont-batching", "-nocb": "--no-cont-batching", "-ctk": "--cache-type-k", "-ctv": "--cache-type-v",
    "-lm": "--load-mode", "-sm": "--split-mode", "-mg": "--main-gpu", "-mm": "--mmproj", "-s": "--seed",
    "--temperature": "--temp", "--typical-p": "--typical", "-sps": "--slot-prompt-similarity", "-v": "--verbose",
    "--log-verbose": "--verbose", "-lv": "--verbosity", "--log-verbosity": "--verbosity", "--embedding": "--embeddings",
    "--webui": "--ui", "--no-webui": "--no-ui", "-ctxcp": "--ctx-checkpoints", "--swa-checkpoints": "--ctx-checkpoints",
    "-nr": "--no-repack", "-fit": "--fit", "-sp": "--special", "--rerank": "--reranking", "-kvu": "--kv-unified",
    "-no-kvu": "--no-kv-unified",
}  # fmt: skip

# the embedded engine writes text, which becomes records all the same: these change nothing that one could see
_LOG_FLAGS = {
    "--log-jsonl": 0, "--no-log-jsonl": 0, "--log-format": 1, "--log-prefix": 0, "--log-timestamps": 0,
    "--no-log-prefix": 0, "--no-log-timestamps": 0, "--log-colors": 1,
}  # fmt: skip


def translate(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Turn llama-server flags into attributes, with warnings for those that have no effect.

    Raises:
        UnsupportedFlagError: a flag that has no attribute.
        SettingError: a value is missing or wrong.
    """
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    rest = list(arguments)
    while rest:
        given = rest.pop(0)
        given, has_value, inline = given.partition("=") if given.startswith("--") else (given, "", "")
        flag = given.replace("_", "-") if given.startswith("--") else given
        flag = ALIASES.get(flag, flag)
        refuse_managed(flag)
        if has_value:
            rest.insert(0, inline)
        if flag in _LOG_FLAGS:
            del rest[: _LOG_FLAGS[flag]]
            warnings.append(f"{given} dropped: the embedded engine logs text, which is parsed into records anyway")
        elif flag in SWITCHES:
            settings.update(SWITCHES[flag](""))
        elif flag in VALUES:
            # older builds took -fa without a value
            bare = flag == "--flash-attn" and (not rest or rest[0] not in ("on", "off", "auto"))
            if not bare and not rest:
                raise SettingError(f"{given} in extra_args needs a value")
            value = "on" if bare else rest.pop(0)
            try:
                settings.update(VALUES[flag](value))
            except ValueError as error:
                raise SettingError(f"{given} in extra_args has the value {value!r}: {error}") from None
        else:
            raise _unsupported(given)
    return settings, warnings


def _unsupported(flag: str) -> UnsupportedFlagError:
    known = sorted(SWITCHES | VALUES)
    near = difflib.get_close_matches(flag, known, n=3)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return UnsupportedFlagError(
        f"the embedded engine cannot express {flag!r}{hint}: leave it out, or use a llama-server executable "
        "(kind='executable'); docs/settings.md lists what the embedded engine takes"
    )
