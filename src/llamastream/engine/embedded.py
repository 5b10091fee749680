"""The embedded engine: options and flags as attributes of xllamacpp's CommonParams."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec

from llamastream.engine.attributes import translate
from llamastream.engine.flags import http_threads
from llamastream.engine.options import EngineOptions

CHILD = Path(__file__).with_name("child.py")


def embedded_version() -> str | None:
    """The installed version of xllamacpp, None if it is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def command() -> list[str]:
    """The command line of the embedded engine's process; everything else goes through its standard input."""
    return [sys.executable, "-I", "-S", str(CHILD)]


def child_input(settings: dict[str, Any], *, gpu: bool) -> bytes:
    """What the process reads: where to find modules, whether a GPU is wanted, and the attributes to set."""
    return msgspec.json.encode({"path": [entry for entry in sys.path if entry], "gpu": gpu, "set": settings})


def settings_for(options: EngineOptions, *, model: str) -> tuple[dict[str, Any], list[str]]:
    """The attributes for resolved options, and warnings.

    Raises:
        UnsupportedFlagError: a flag in `extra_args` that the embedded engine cannot express.
        SettingError: a flag's value is wrong.
    """
    assert options.ctx_size is not None
    assert options.threads is not None
    settings: dict[str, Any] = {
        "model.path": model,
        "hostnames": [options.socket or options.host],
        "port": 0 if options.socket else options.port,
        "n_parallel": options.parallel,
        # each slot owns its part of the context: with one pool for all, an overflow fails every request at once
        "kv_unified": False,
        "n_ctx": options.ctx_size * options.parallel,
        "cont_batching": True,
        "cpuparams.n_threads": options.threads,
        "cpuparams_batch.n_threads": options.threads_batch or options.threads,
        "n_threads_http": http_threads(options),
        "timeout_read": options.timeout,
        "timeout_write": options.timeout,
        "cache_ram_mib": options.cache_ram,
        "endpoint_metrics": options.metrics,
        "endpoint_slots": options.slots,
        "ui": False,
    }
    if options.gpu:
        settings["n_gpu_layers"] = -1 if options.gpu_layers is None else options.gpu_layers
    else:
        settings |= {"n_gpu_layers": 0, "no_kv_offload": True, "no_op_offload": True, "fit_params": False}
    if options.alias is not None:
        settings["model_alias"] = [options.alias]
    if options.api_key is not None:
        settings["api_keys"] = [options.api_key]
    if options.slot_save_path is not None:
        # the server joins directory and file name without a separator
        settings["slot_save_path"] = options.slot_save_path.rstrip("/") + "/"
    if options.sse_ping_interval is not None:
        settings["sse_ping_interval"] = options.sse_ping_interval
    if options.slot_prompt_similarity is not None:
        settings["slot_prompt_similarity"] = options.slot_prompt_similarity
    if options.embedding or options.reranking:
        settings["embedding"] = True
    if options.reranking:
        settings["pooling_type"] = "LLAMA_POOLING_TYPE_RANK"
    extra, warnings = translate(options.extra_args)
    return settings | extra, warnings
