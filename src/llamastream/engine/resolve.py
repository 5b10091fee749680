"""Filling in what the options leave open: threads, context, prompt cache, model. Pure but for `resolve` itself."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llamastream.engine.demo import DEMO_ALIAS, demo_model_path
from llamastream.engine.flags import http_threads
from llamastream.engine.gguf import GgufError, GgufInfo, read_gguf
from llamastream.engine.machine import cores, default_cache_ram, memory
from llamastream.engine.options import EngineOptions
from llamastream.errors import EngineMemoryError, ModelFileError

DEFAULT_CTX = 8192
SMALLEST_DEFAULT_CTX = 1024
# architectures whose every layer keeps keys and values of the whole context: for them the size is no upper bound
# but the truth, so that a context that cannot fit may be refused before the machine runs out of memory
_PLAIN = frozenset({"llama", "qwen2", "qwen3", "phi3", "mistral3", "granite", "olmo2", "starcoder2", "stablelm"})


def default_ctx(info: GgufInfo | None, parallel: int, available: int) -> int:
    """Tokens of context per slot when nobody says: the training context up to 8192, halved while all slots together
    would take more than half of the available memory.
    """
    ctx = DEFAULT_CTX
    if info is None:
        return ctx
    if info.n_ctx_train:
        ctx = min(ctx, info.n_ctx_train)
    per_token = info.kv_bytes_per_token()
    while ctx > SMALLEST_DEFAULT_CTX and ctx * parallel * per_token > available // 2:
        ctx //= 2
    return ctx


def check_memory(info: GgufInfo, options: EngineOptions, usable: int) -> None:
    """Refuse a context that cannot fit into the machine, before the attempt brings the machine down.

    Raises:
        EngineMemoryError: context memory alone exceeds the usable memory.
    """
    if options.gpu or info.architecture not in _PLAIN or options.ctx_size is None:
        return
    # a quantised cache is smaller: at least a quarter of F16 remains
    smaller = any(arg.startswith(("-ctk", "-ctv", "--cache-type")) for arg in options.extra_args)
    need = options.ctx_size * options.parallel * info.kv_bytes_per_token() // (4 if smaller else 1)
    if need > usable:
        raise EngineMemoryError(
            f"the context needs {need / 2**30:.1f} GiB ({options.parallel} slots of {options.ctx_size} tokens), "
            f"this machine has {usable / 2**30:.1f} GiB: use a smaller ctx_size, or fewer slots (parallel)"
        )


def check_model(path: str) -> GgufInfo:
    """Look at a model file before a server is started for it.

    Raises:
        ModelFileError: missing, unreadable, a directory, or no GGUF file.
    """
    if Path(path).is_dir():
        raise ModelFileError(f"the model {path!r} is a directory: give the path of a .gguf file in it")
    try:
        return read_gguf(path)
    except FileNotFoundError:
        raise ModelFileError(f"the model file {path!r} does not exist: check the path") from None
    except OSError as error:
        raise ModelFileError(f"the model file {path!r} cannot be read: {error.strerror}") from None
    except GgufError as error:
        raise ModelFileError(f"the model file {path!r} is no usable GGUF file: {error}") from None


TINY_MODEL_BYTES = 16 * 1024 * 1024
"""Models below this size, such as the demo model, run on one thread."""


def resolve(options: EngineOptions, *, downloaded: str | None = None) -> tuple[EngineOptions, list[str]]:
    """Options with every open field filled in, and warnings about what was limited.

    Args:
        downloaded: path of the model that was fetched for `options.hf`; None: the engine fetches it itself.

    Raises:
        ModelFileError: the model file cannot be used.
        EngineMemoryError: the context cannot fit.
    """
    warnings: list[str] = []
    mem = memory()
    alias = options.alias
    model = downloaded
    if options.hf is None:
        if options.model is None:
            model, alias = str(demo_model_path()), alias or DEMO_ALIAS
        else:
            model = str(Path(options.model).expanduser().absolute())
    info = check_model(model) if model is not None else None
    ctx = options.ctx_size or default_ctx(info, options.parallel, mem.available)
    if options.ctx_size is None and info is not None and ctx < min(DEFAULT_CTX, info.n_ctx_train or DEFAULT_CTX):
        warnings.append(f"ctx_size set to {ctx} per slot: more would take over half of the available memory")
    # A second thread has nothing to do on a tiny model, but its busy waiting takes a core from everybody else.
    tiny = info is not None and info.size < TINY_MODEL_BYTES
    threads = options.threads or (1 if tiny else cores().usable)
    filled = msgspec.structs.replace(
        options,
        model=model if options.hf is None else None,
        alias=alias,
        ctx_size=ctx,
        threads=threads,
        threads_batch=options.threads_batch or threads,
        threads_http=http_threads(options),
        cache_ram=default_cache_ram(mem.usable) if options.cache_ram is None else options.cache_ram,
        socket=str(Path(options.socket).expanduser().absolute()) if options.socket else None,
        slot_save_path=str(Path(options.slot_save_path).expanduser().absolute()) if options.slot_save_path else None,
    )
    if info is not None:
        check_memory(info, filled, mem.usable)
    return filled, warnings
