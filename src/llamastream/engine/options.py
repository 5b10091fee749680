"""What an engine is to be: one frozen declaration that settings, the command line and the documentation derive from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from llamastream.errors import SettingError
from llamastream.settings.words import shown

# constraints stand on the number itself: msgspec refuses them on a union with None
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
PingInterval = Annotated[int, Meta(ge=-1)]
EngineKind = Literal["auto", "embedded", "executable"]

# sockaddr_un.sun_path: 108 bytes on Linux, 104 on macOS and the BSDs, with the final NUL byte
MAX_SOCKET_PATH = 103


class EngineOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to start a llama-server; every field has a default, and the defaults are tuned for streaming.

    Paths are strings (`os.PathLike` is accepted and converted; `~` is expanded when the engine starts).

    Raises:
        SettingError: a value, or a combination of values, is not allowed.
    """

    SECTION: ClassVar[str] = "serve"

    kind: Annotated[
        EngineKind,
        Meta(
            description="Which engine: `executable` (a llama-server program), `embedded` (the xllamacpp wheel), or "
            "`auto`: the executable if one is found (binary, LLAMA_SERVER_BIN, PATH), else the embedded one."
        ),
    ] = "auto"
    binary: Annotated[
        str | None,
        Meta(description="Path or name of the llama-server executable; unset: LLAMA_SERVER_BIN, then PATH."),
    ] = None
    model: Annotated[
        str | None,
        Meta(
            description="Path of the GGUF model file; unset (and no hf): the small demo model of this package.",
            extra={"flags": ["--model", "-m"]},
        ),
    ] = None
    hf: Annotated[
        str | None,
        Meta(
            description="Hugging Face repository with a GGUF model, `USER/REPO` or `USER/REPO:QUANT`.",
            extra={"flags": ["--hf", "-hf"]},
        ),
    ] = None
    alias: Annotated[
        str | None,
        Meta(description="Model name that the API shows; unset: `demo` for the demo model, else the server's choice."),
    ] = None
    host: Annotated[str, Meta(description="IP address or host name to listen on.", min_length=1)] = "127.0.0.1"
    port: Annotated[
        int, Meta(description="TCP port to listen on; 0: a free one that the system picks.", ge=0, le=65535)
    ] = 0
    socket: Annotated[
        str | None,
        Meta(description="Unix socket path to listen on, ending in `.sock`, instead of host and port."),
    ] = None
    parallel: Annotated[
        int, Meta(description="Slots, that is requests generated at the same time; each has its own context.", ge=1)
    ] = 4
    ctx_size: Annotated[
        Positive | None,
        Meta(
            description="Context of each slot in tokens (the server gets this times `parallel`); unset: the model's "
            "training context, at most 8192, less where memory is short."
        ),
    ] = None
    threads: Annotated[
        Positive | None,
        Meta(
            description="CPU threads for decode; unset: the usable physical cores (affinity, cgroup), or 1 for a tiny "
            "model."
        ),
    ] = None
    threads_batch: Annotated[
        Positive | None, Meta(description="CPU threads for prefill; unset: the same as `threads`.")
    ] = None
    threads_http: Annotated[
        int,
        Meta(
            description="HTTP threads; at least `parallel` + 4 are started, because each stream occupies one and "
            "health checks must not wait for streams.",
            ge=1,
        ),
    ] = 4
    timeout: Annotated[int, Meta(description="Read and write timeout of the server in seconds.", ge=1)] = 300
    cache_ram: Annotated[
        NotNegative | None,
        Meta(
            description="Memory for the prompt cache of evicted slots in MiB (0: off); unset: an eighth of the "
            "machine's memory, at most 8192."
        ),
    ] = None
    slot_prompt_similarity: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="Share of a prompt that a slot must hold for the server to put it there rather than into "
            "the slot that was used longest ago; unset: the server's 0.1, and 0.75 behind a gateway, so that a "
            "conversation is not overwritten by another one with the same system prompt."
        ),
    ] = None
    gpu: Annotated[bool, Meta(description="Use the GPU; off: everything runs on the CPU.")] = False
    gpu_layers: Annotated[
        NotNegative | None,
        Meta(description="Model layers to put on the GPU, needs `gpu`; unset: as many as fit."),
    ] = None
    embedding: Annotated[
        bool, Meta(description="Serve embeddings, and nothing else; for models that are made for it.")
    ] = False
    reranking: Annotated[
        bool, Meta(description="Serve reranking, and nothing else; for models that are made for it.")
    ] = False
    api_key: Annotated[
        str | None,
        Meta(
            description="Key that clients must send; passed to the server by file, never on its command line.",
            extra={"secret": True},
        ),
    ] = None
    slot_save_path: Annotated[
        str | None,
        Meta(description="Directory for saved slots (`POST /slots/ID?action=save`); unset: saving is off."),
    ] = None
    metrics: Annotated[bool, Meta(description="Serve Prometheus metrics at `/metrics`.")] = True
    slots: Annotated[bool, Meta(description="Serve the state of the slots at `/slots`.")] = True
    sse_ping_interval: Annotated[
        PingInterval | None,
        Meta(description="Seconds between keep-alive pings in a stream (-1: none); unset: the server's 30."),
    ] = None
    extra_args: Annotated[
        tuple[str, ...],
        Meta(description="Further llama-server flags; the embedded engine takes those that it can express."),
    ] = ()
    start_timeout: Annotated[
        float, Meta(description="Seconds that start-up may take, loading the model included.", gt=0)
    ] = 600.0
    stop_timeout: Annotated[
        float, Meta(description="Seconds from SIGTERM until the server is killed with SIGKILL.", ge=0)
    ] = 10.0

    def __post_init__(self) -> None:
        for name in ("binary", "model", "socket", "slot_save_path"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                msgspec.structs.force_setattr(self, name, os.fspath(value))
        if isinstance(self.extra_args, list):
            msgspec.structs.force_setattr(self, "extra_args", tuple(self.extra_args))
        _check_types(self)
        _check_combinations(self)

    def __repr__(self) -> str:
        return f"EngineOptions({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return shown(self, secret=("api_key",))


def _check_types(options: EngineOptions) -> None:
    # msgspec enforces `Meta` when it decodes, not when Python code calls the constructor
    for name, annotation in _field_types().items():
        value = getattr(options, name)
        try:
            msgspec.convert(value, annotation, strict=True)
        except msgspec.ValidationError as error:
            shown = "***" if name == "api_key" else repr(value)
            raise SettingError(f"EngineOptions.{name} is {shown}: {error}") from None


_types: dict[str, Any] = {}


def _field_types() -> dict[str, Any]:
    if not _types:
        import typing

        hints = typing.get_type_hints(EngineOptions, include_extras=True)
        _types.update({field.name: hints[field.name] for field in msgspec.structs.fields(EngineOptions)})
    return _types


def _check_combinations(options: EngineOptions) -> None:
    if options.model is not None and options.hf is not None:
        raise SettingError(
            f"both model ({options.model!r}) and hf ({options.hf!r}) are set: give one, or neither for the demo model"
        )
    for name in ("binary", "model", "hf", "alias", "socket", "slot_save_path", "api_key"):
        if getattr(options, name) == "":
            raise SettingError(f"EngineOptions.{name} is empty: leave it unset (None) or give a value")
    if options.hf is not None:
        _check_hf(options.hf)
    if options.socket is not None:
        _check_socket(options)
    if options.gpu_layers is not None and not options.gpu and options.gpu_layers > 0:
        raise SettingError(f"gpu_layers is {options.gpu_layers} but gpu is off: set gpu=True too, or drop gpu_layers")
    if options.embedding and options.reranking:
        raise SettingError("both embedding and reranking are on: a server is for one of them; run one for each")
    if options.sse_ping_interval == 0:
        raise SettingError("sse_ping_interval is 0: give at least 1 second, or -1 for no pings")
    if options.kind == "embedded" and options.binary is not None:
        raise SettingError(
            f"binary is {options.binary!r} but kind is 'embedded', which runs no executable: drop one of the two"
        )
    if options.api_key is not None:
        _check_key(options.api_key)
    if "\0" in "".join(options.extra_args):
        raise SettingError("extra_args holds a NUL character, which no command line can carry")


def _check_hf(hf: str) -> None:
    repo, _, quant = hf.partition(":")
    user, slash, name = repo.partition("/")
    if not (user and slash and name) or "/" in name or (":" in hf and not quant):
        raise SettingError(f"hf is {hf!r}: expected USER/REPO or USER/REPO:QUANT, such as ggml-org/gemma-3-1b-it-GGUF")


def _check_socket(options: EngineOptions) -> None:
    path = options.socket or ""
    if options.port:
        raise SettingError(
            f"both socket ({path!r}) and port ({options.port}) are set: the server listens on one of them"
        )
    if options.host != "127.0.0.1":
        raise SettingError(f"both socket ({path!r}) and host ({options.host!r}) are set: the server listens on one")
    if not path.endswith(".sock"):
        raise SettingError(f"socket is {path!r}: llama-server takes it for a socket only if the name ends in '.sock'")
    if "," in path:
        raise SettingError(
            f"socket is {path!r}: a comma separates addresses for llama-server and may not be in the path"
        )
    size = len(os.fsencode(Path(path).expanduser().absolute()))
    if size > MAX_SOCKET_PATH:
        raise SettingError(
            f"socket is {size} bytes long as an absolute path, the system allows {MAX_SOCKET_PATH}: use a shorter path"
        )


def _check_key(key: str) -> None:
    # the key travels in a file of one key per line, with # for comments, and in an HTTP header
    if not key.isascii() or not key.isprintable() or key != key.strip() or key.startswith("#") or "," in key:
        raise SettingError(
            "api_key may hold printable ASCII only, no comma, no space at either end and no '#' in front, "
            "because llama-server reads it from a file and from an HTTP header"
        )
