"""What is tried: the settings of a server that bear on its speed, as dimensions of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.bench.halving import Candidate, Dimension
from llamastream.bench.tune.settings import TuneSettings, cache_types_of
from llamastream.engine import EngineOptions
from llamastream.engine.machine import cores, memory
from llamastream.engine.needs import need_of
from llamastream.engine.probe import find_binary, probe
from llamastream.errors import EngineMemoryError, SettingError

UNSET = "default"
"""A flag is left out: the server does as it likes."""

AUTO_SLOTS = 4
"""llama-server's own number of slots, which share one context."""

BATCHES = ("2048/512", "2048/128", "2048/1024", "512/128", "512/512")
"""Batch and micro-batch size in tokens, llama-server's own first."""

DIMENSIONS = ("threads", "threads_batch", "parallel", "batch", "flash_attn", "cache_type", "load_mode")
"""In the order of a candidate."""

_TUNED = {
    "--batch-size": 1, "-b": 1, "--ubatch-size": 1, "-ub": 1, "--flash-attn": 1, "-fa": 1, "--cache-type-k": 1,
    "-ctk": 1, "--cache-type-v": 1, "-ctv": 1, "--load-mode": 1, "-lm": 1, "--mlock": 0, "--mmap": 0, "--no-mmap": 0,
    "--kv-unified": 0, "-kvu": 0, "--no-kv-unified": 0, "-no-kvu": 0,
}  # fmt: skip
"""Flags that are looked for, and how many values they have."""


class Machine(Struct, frozen=True):
    """What bears on the values that are worth a try.

    Attributes:
        physical: cores that llama-server would use by itself. usable: of these, those that we may use. logical: CPUs
            that we may use. auto_slots: slots of a llama-server that is told nothing of them.
    """

    physical: int
    usable: int
    logical: int
    auto_slots: int = AUTO_SLOTS


def machine_of(options: EngineOptions) -> Machine:
    """Look at this machine and its engine."""
    found = cores()
    binary = find_binary(options.binary) if options.kind != "embedded" else None
    # builds that have no common context for all slots have one slot, if they are told nothing
    shares = binary is None or probe(binary.path).help().has("--kv-unified")
    return Machine(found.physical, found.usable, found.affinity, AUTO_SLOTS if shares else 1)


def base_of(options: EngineOptions, model: str) -> EngineOptions:
    """The options that all trials have in common: what is not looked for, on a port of their own.

    Raises:
        SettingError: the server is to do something else than to generate.
    """
    if options.embedding or options.reranking:
        raise SettingError("embedding or reranking is on: tune measures generation; switch them off")
    return msgspec.structs.replace(
        options, model=model, hf=None, alias=None, host="127.0.0.1", port=0, socket=None, api_key=None,
        slot_save_path=None, threads=None, threads_batch=None, extra_args=without_tuned(options.extra_args),
    )  # fmt: skip


def without_tuned(arguments: Sequence[str]) -> tuple[str, ...]:
    """The flags that are not looked for."""
    kept: list[str] = []
    skip = 0
    for argument in arguments:
        name, has_value, _ = argument.partition("=")
        flag = name.replace("_", "-") if name.startswith("--") else name
        if flag in _TUNED:
            skip = 0 if has_value else _TUNED[flag]
        elif skip and not argument.startswith("-"):
            skip -= 1
        else:
            skip = 0
            kept.append(argument)
    return tuple(kept)


def defaults_of(base: EngineOptions, machine: Machine) -> EngineOptions:
    """What llama-server does if it is told nothing but its model: a thread for each core, and slots that share one
    context. Their context together is as large as that of as many slots of the candidates, so that both need the same
    memory."""
    more = ("--kv-unified",) if machine.auto_slots > 1 else ()
    return msgspec.structs.replace(
        base, threads=machine.physical, threads_batch=machine.physical, parallel=machine.auto_slots,
        extra_args=(*base.extra_args, *more),
    )  # fmt: skip


def space_of(settings: TuneSettings, base: EngineOptions, machine: Machine) -> tuple[Dimension, ...]:
    """The dimensions for a goal. Of one request at a time slots cannot be told apart, so these stay what they are."""
    threads = _unique(machine.usable, machine.physical, machine.usable // 2, machine.usable - 1, machine.logical)
    batch_threads = _unique(machine.usable, machine.logical, machine.usable // 2)
    slots: tuple[int, ...] = (base.parallel,)
    if settings.goal != "latency":
        most = settings.at_once
        slots = _unique(AUTO_SLOTS, *(2**power for power in range(11) if 2**power <= most), most)
    named = [UNSET if name == "f16" else name for name in cache_types_of(settings.cache_types)]
    cache = sorted(named, key=lambda name: name != UNSET)
    values = (threads, batch_threads, slots, BATCHES, (UNSET, "on", "off"), cache, (UNSET, "none", "mlock"))
    return tuple(Dimension(name, tuple(each)) for name, each in zip(DIMENSIONS, values, strict=True))


def hunches_of(settings: TuneSettings, space: Sequence[Dimension]) -> list[Candidate]:
    """What usually pays, for a search that has time for few candidates: where many ask at once, a slot for each of them
    (else they wait for one another); flash attention; all logical CPUs for prefill."""
    plain = {dimension.name: dimension.values[0] for dimension in space}
    values = {dimension.name: dimension.values for dimension in space}
    many: dict[str, Any] = {"parallel": settings.at_once} if settings.goal != "latency" else {}
    changes = [many, {**many, "flash_attn": "on"}, {**many, "threads_batch": max(values["threads_batch"])}]
    changed = [{**plain, **change} for change in changes if change]
    return [
        tuple(each[name] for name in DIMENSIONS) for each in changed
        if each != plain and all(each[name] in values[name] for name in DIMENSIONS)
    ]  # fmt: skip


def _unique(*numbers: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number for number in numbers if number >= 1))


def sensible(candidate: Candidate) -> bool:
    """Whether llama-server can do it at all: it cannot read a quantised cache of values without flash attention."""
    named = dict(zip(DIMENSIONS, candidate, strict=True))
    return not (named["flash_attn"] == "off" and named["cache_type"] not in (UNSET, "f32", "bf16"))


def options_of(candidate: Candidate, base: EngineOptions) -> EngineOptions:
    """A candidate as options of a server."""
    named = dict(zip(DIMENSIONS, candidate, strict=True))
    flags: list[str] = []
    if named["batch"] != BATCHES[0]:
        batch, _, micro = named["batch"].partition("/")
        flags += ["--batch-size", batch, "--ubatch-size", micro]
    if named["flash_attn"] != UNSET:
        flags += ["--flash-attn", named["flash_attn"]]
    if named["cache_type"] != UNSET:
        flags += ["--cache-type-k", named["cache_type"], "--cache-type-v", named["cache_type"]]
    if named["load_mode"] != UNSET:
        flags += ["--load-mode", named["load_mode"]]
    return msgspec.structs.replace(
        base, threads=named["threads"], threads_batch=named["threads_batch"], parallel=named["parallel"],
        extra_args=(*base.extra_args, *flags),
    )  # fmt: skip


def described(candidate: Candidate, space: Sequence[Dimension]) -> str:
    """What is not as in the first candidate: `threads=2 parallel=8 batch=512/128`."""
    pairs = zip(space, candidate, strict=True)
    parts = [f"{dimension.name}={value}" for dimension, value in pairs if value != dimension.values[0]]
    return " ".join(parts) or "own slots, all else default"


def misfit(options: EngineOptions) -> str:
    """Why it cannot fit into the machine's memory; "" if it may."""
    try:
        need = need_of("", options)
    except EngineMemoryError as error:
        return error.message
    # the cache of prompts grows only as far as prompts fill it
    wanted, usable = need.weights + need.kv_cache + need.overhead, memory().usable
    if wanted <= usable:
        return ""
    return f"needs {wanted / 2**30:.1f} GiB of memory, there are {usable / 2**30:.1f} GiB"
