"""From options to the command line of one particular llama-server build, judged by its `--help`.

Pure: the parsed help comes in, the arguments and warnings go out. What a build lacks is translated to what it calls the
same thing, dropped with a warning where it was only a default of ours, and refused where somebody asked for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from msgspec import Struct

from llamastream.engine.helptext import Help
from llamastream.engine.options import EngineOptions
from llamastream.engine.translations import DROPPED, TAKE_VALUE, TRANSLATIONS
from llamastream.errors import UnsupportedFlagError

# flags of llama-server that an option expresses: twice given they would contradict each other
MANAGED = {
    "--model": "model", "-m": "model", "--hf-repo": "hf", "-hf": "hf", "-hfr": "hf", "--alias": "alias", "-a": "alias",
    "--host": "host or socket", "--port": "port", "--parallel": "parallel", "-np": "parallel",
    "--ctx-size": "ctx_size (per slot)", "-c": "ctx_size (per slot)", "--threads": "threads", "-t": "threads",
    "--threads-batch": "threads_batch", "-tb": "threads_batch", "--threads-http": "threads_http",
    "--timeout": "timeout", "-to": "timeout", "--cache-ram": "cache_ram", "-cram": "cache_ram",
    "--gpu-layers": "gpu and gpu_layers", "--n-gpu-layers": "gpu and gpu_layers", "-ngl": "gpu and gpu_layers",
    "--api-key": "api_key (never on the command line, where every user of the machine can read it)",
    "--api-key-file": "api_key", "--slot-save-path": "slot_save_path", "--metrics": "metrics", "--slots": "slots",
    "--no-slots": "slots", "--sse-ping-interval": "sse_ping_interval",
    "--slot-prompt-similarity": "slot_prompt_similarity", "-sps": "slot_prompt_similarity",
}  # fmt: skip
# flags that make the program do something else than serve
_NOT_SERVING = {"--help", "-h", "--usage", "--version", "--completion-bash", "--list-devices", "--cache-list", "-cl"}

# each stream occupies one HTTP thread; these remain for /health, /slots, /metrics and cancelling
HTTP_THREAD_MARGIN = 4


class CommandLine(Struct, frozen=True):
    """Arguments after the program's name, and what the user should know about them."""

    arguments: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def refuse_managed(flag: str) -> None:
    """Refuse a flag of `extra_args` that an option expresses.

    Raises:
        UnsupportedFlagError: naming the option.
    """
    if flag in MANAGED:
        raise UnsupportedFlagError(f"{flag} in extra_args: set the option {MANAGED[flag]} instead")
    if flag == "--api-prefix":
        raise UnsupportedFlagError(
            f"{flag} in extra_args: clients expect the API at the root; use a proxy for a prefix"
        )
    if flag in _NOT_SERVING:
        raise UnsupportedFlagError(f"{flag} in extra_args: with it the program would not serve; remove it")


def http_threads(options: EngineOptions) -> int:
    """How many HTTP threads to ask for: as set, but at least one for each slot and a margin.

    In older builds the pool is fixed: with all threads taken by streams, `/health` waits too. Newer ones start threads
    on demand, but only if none is idle when a connection comes: of a burst that arrives before the idle ones have
    woken, some connections wait until a stream ends (seen: of 4 at once on 1 thread, one waited for over 30 s).
    """
    return max(options.threads_http, options.parallel + HTTP_THREAD_MARGIN)


def command_line(options: EngineOptions, known: Help, *, model: str | None, key_file: str | None = None) -> CommandLine:
    """The arguments for resolved options.

    Args:
        options: with threads, ctx_size and cache_ram filled in.
        known: the build's help.
        model: path of the model; None: the build downloads `options.hf` itself.
        key_file: file that holds the API key.

    Raises:
        UnsupportedFlagError: the build lacks a flag that the options cannot do without.
    """
    assert options.ctx_size is not None
    assert options.threads is not None
    line = _Line(known)
    if model is not None:
        line.need(["--model", "-m"], model)
    elif options.hf is not None:
        line.need(["--hf-repo", "-hf", "-hfr"], options.hf)
    line.need(["--host"], options.socket or options.host)
    if options.socket is None:
        line.need(["--port"], str(options.port))
    line.need(["--parallel", "-np"], str(options.parallel))
    line.need(["--ctx-size", "-c"], str(options.ctx_size * options.parallel))
    line.offer(["--no-kv-unified", "-no-kvu"])
    line.offer(["--cont-batching", "-cb"])
    line.need(["--threads", "-t"], str(options.threads))
    line.offer(["--threads-batch", "-tb"], str(options.threads_batch or options.threads))
    line.want("threads_http", ["--threads-http"], str(http_threads(options)))
    line.want("timeout", ["--timeout", "-to"], str(options.timeout))
    line.want("cache_ram", ["--cache-ram", "-cram"], str(options.cache_ram), quiet=options.cache_ram is None)
    if options.metrics:
        line.want("metrics", ["--metrics"])
    line.slots(options.slots)
    line.device(options)
    if options.alias is not None:
        line.need(["--alias", "-a"], options.alias)
    if options.slot_save_path is not None:
        line.need(["--slot-save-path"], options.slot_save_path.rstrip("/") + "/")
    if options.sse_ping_interval is not None:
        line.want("sse_ping_interval", ["--sse-ping-interval"], str(options.sse_ping_interval))
    if options.slot_prompt_similarity is not None:
        share = f"{options.slot_prompt_similarity:g}"
        line.want("slot_prompt_similarity", ["--slot-prompt-similarity", "-sps"], share)
    if key_file is not None:
        line.need(["--api-key-file"], key_file)
    if options.embedding:
        line.task("embedding", ["--embeddings", "--embedding"])
    if options.reranking:
        line.task("reranking", ["--reranking", "--rerank"])
    line.offer(["--no-ui", "--no-webui"], unless=("--ui", "--webui"), given=options.extra_args)
    if not {"--log-jsonl", "--no-log-jsonl", "--log-format"} & set(options.extra_args):
        line.json_log()
    line.add_given(options.extra_args)
    return CommandLine(tuple(line.arguments), tuple(line.warnings))


def check_given(arguments: Sequence[str], known: Help) -> None:
    """Look whether a build takes the flags of `extra_args`.

    Raises:
        UnsupportedFlagError: it does not.
    """
    _Line(known).add_given(arguments)


class _Line:
    """Collects the arguments for one build."""

    def __init__(self, known: Help) -> None:
        self.known = known
        self.arguments: list[str] = []
        self.warnings: list[str] = []

    def need(self, names: Sequence[str], value: str) -> None:
        flag = self.known.first(*names)
        if flag is None:
            raise UnsupportedFlagError(
                f"this llama-server has no {names[0]}, which is needed for {MANAGED.get(names[0], names[0])}: "
                "use a newer build, or leave the option unset"
            )
        self.arguments += [flag, value]

    def want(self, option: str, names: Sequence[str], value: str | None = None, *, quiet: bool = False) -> None:
        """A setting that the server can do without: dropped with a warning."""
        if not self.offer(names, value) and not quiet:
            self.warnings.append(f"{option} has no effect: this llama-server has no {names[0]}")

    def offer(
        self,
        names: Sequence[str],
        value: str | None = None,
        *,
        unless: Sequence[str] = (),
        given: Sequence[str] = (),
    ) -> bool:
        """A flag for the builds that have it; builds without it behave as wanted."""
        flag = self.known.first(*names)
        if flag is None or set(unless) & set(given):
            return False
        self.arguments += [flag] if value is None else [flag, value]
        return True

    def task(self, option: str, names: Sequence[str]) -> None:
        if not self.offer(names):
            raise UnsupportedFlagError(f"{option} is on, but this llama-server has no {names[0]}: use a newer build")

    def slots(self, wanted: bool) -> None:
        # 2023: on, `--slots-endpoint-disable`; 2024: off, `--slots`; since 2025: on, `--no-slots`
        if wanted:
            if not self.offer(["--slots"]) and not self.known.has("--slots-endpoint-disable"):
                self.warnings.append("slots has no effect: this llama-server has no --slots")
        else:
            self.offer(["--no-slots", "--slots-endpoint-disable"])

    def device(self, options: EngineOptions) -> None:
        layers = ["--gpu-layers", "--n-gpu-layers", "-ngl"]
        if not options.gpu:
            # a build with a broken GPU driver works if it is told not to look
            self.offer(["--device", "-dev"], "none")
            self.offer(layers, "0")
            if not {"--fit", "-fit"} & set(options.extra_args):
                self.offer(["--fit", "-fit"], "off")  # it fits settings to a GPU's memory; here it costs a second load
            return
        if self.known.first(*layers) is None:
            raise UnsupportedFlagError(
                "gpu is on, but this llama-server was built without GPU support (it has no --gpu-layers): use a build "
                "for your GPU, or gpu=False"
            )
        # older builds know numbers only, and take more layers than there are for all
        automatic = any(self.known.mentions(flag, "auto") for flag in layers)
        count = options.gpu_layers
        self.offer(layers, str(count) if count is not None else "auto" if automatic else "999")

    def json_log(self) -> None:
        if not self.offer(["--log-jsonl"]):
            self.offer(["--log-format"], "json")

    def add_given(self, given: Sequence[str]) -> None:
        rest = list(given)
        while rest:
            flag = rest.pop(0)
            if flag.startswith("--") and "=" in flag:
                flag, _, inline = flag.partition("=")
                rest.insert(0, inline)
            if not re.match(r"--?[A-Za-z]", flag):
                raise UnsupportedFlagError(f"{flag!r} in extra_args stands where a flag is expected (`--name value`)")
            name = flag.replace("_", "-") if flag.startswith("--") else flag
            refuse_managed(name)
            self._one(name, rest)

    def _one(self, flag: str, rest: list[str]) -> None:
        """Take one flag and its values from the rest."""
        values_follow = bool(rest) and not re.match(r"--?[A-Za-z]", rest[0])
        if flag in ("--flash-attn", "-fa") and self.known.has(flag):
            self._flash_attention(flag, rest.pop(0) if values_follow else None)
            return
        if self.known.has(flag):
            arity = self.known.flags[flag].arity
            values = [rest.pop(0) for _ in range(min(arity, len(rest)))]
            if len(values) < arity:
                raise UnsupportedFlagError(
                    f"{flag} in extra_args needs {arity} value(s): {self.known.flags[flag].hint}"
                )
            if flag in self.arguments and not values:
                return  # already there by default
            self.arguments += [flag, *values]
            return
        if flag in TRANSLATIONS:
            value = rest.pop(0) if flag in TAKE_VALUE and rest else None
            replaced = TRANSLATIONS[flag](self.known, value)
            if replaced is not None:
                old = flag if value is None else f"{flag} {value}"
                self.warnings.append(
                    f"{old} translated to {' '.join(replaced)}" if replaced else f"{old} dropped: {DROPPED[flag]}"
                )
                # several old flags may become one new one (`--mlock --no-mmap`): the first to ask for more wins
                if replaced and replaced[0] in self.arguments:
                    self._merge(replaced)
                else:
                    self.arguments += replaced
                return
        raise self._unknown(flag)

    def _merge(self, replaced: list[str]) -> None:
        at = self.arguments.index(replaced[0]) + 1
        if replaced[0] == "--load-mode" and "mlock" in (replaced[1], self.arguments[at]):
            self.arguments[at] = "mlock"
        elif len(replaced) > 1:
            self.arguments[at] = replaced[1]

    def _flash_attention(self, flag: str, value: str | None) -> None:
        takes_value = self.known.flags[flag].arity == 1
        if takes_value:
            self.arguments += [flag, value or "on"]
        elif value in (None, "on", "1", "true"):
            self.arguments.append(flag)
        else:
            self.warnings.append(f"{flag} {value} dropped: this llama-server only knows {flag} without a value")

    def _unknown(self, flag: str) -> UnsupportedFlagError:
        near = difflib.get_close_matches(flag, self.known.names, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        found = self.known.flags.get(flag)
        if found is not None and found.removed:
            hint = f": {found.text}"
        return UnsupportedFlagError(
            f"this llama-server does not know {flag}{hint} (see `llama-server --help` for all that it allows)"
        )


def hidden(arguments: Sequence[str], secrets: Sequence[str]) -> tuple[str, ...]:
    """A command line that may be shown: secrets replaced by `***`."""
    shown = []
    for argument in arguments:
        for secret in secrets:
            argument = argument.replace(secret, "***") if secret else argument
        shown.append(argument)
    return tuple(shown)
