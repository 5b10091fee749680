"""What a server will need of the machine's memory, estimated from its options and the header of its model."""

from __future__ import annotations

from llamastream.engine.options import EngineOptions
from llamastream.engine.resolve import check_model, resolve
from llamastream.policy.budget import Need

BASE = 96 << 20
"""Bytes that a server takes without any model: its program, its HTTP threads, its logs."""
BATCH = 2048
"""Tokens of a batch, llama-server's default."""


def need_of(name: str, options: EngineOptions) -> Need:
    """An estimate, on the high side for the context (see `GgufInfo.kv_bytes_per_token`). What a GPU holds is left out,
    and so is a model that is still to be downloaded.

    Raises:
        ModelFileError: the model file cannot be used.
        EngineMemoryError: the context alone cannot fit.
    """
    filled, _ = resolve(options)
    prompt_cache = (filled.cache_ram or 0) << 20
    if filled.model is None:
        return Need(name=name, model=options.hf or "", weights=0, kv_cache=0, prompt_cache=prompt_cache, overhead=BASE)
    info = check_model(filled.model)
    on_gpu = options.gpu and options.gpu_layers is None
    return Need(
        name=name,
        model=filled.model,
        weights=0 if on_gpu else info.size,
        kv_cache=0 if on_gpu else (filled.ctx_size or 0) * filled.parallel * info.kv_bytes_per_token(),
        prompt_cache=prompt_cache,
        # activations of one batch: a few vectors of the model's width for each of its tokens
        overhead=BASE + BATCH * info.n_embd * 4 * 8,
    )
