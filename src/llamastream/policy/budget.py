"""What several servers on one machine take of it: the memory that they need, the threads that each gets."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Need(Struct, frozen=True, kw_only=True):
    """What one instance needs, in bytes.

    Attributes:
        name: the instance. model: the file, whose pages all instances of it share. weights: its size.
        kv_cache: context of all slots. prompt_cache: what evicted slots may take (`cache_ram`). overhead: the rest.
    """

    name: str
    model: str
    weights: int
    kv_cache: int
    prompt_cache: int
    overhead: int


def total(needs: Sequence[Need]) -> int:
    """Bytes of all instances together; a model file that several of them map counts once."""
    weights = {need.model: need.weights for need in needs}
    return sum(weights.values()) + sum(need.kv_cache + need.prompt_cache + need.overhead for need in needs)


def refusal(needs: Sequence[Need], available: int) -> str | None:
    """Why these instances do not fit into the available memory (bytes), and what to do; None if they fit."""
    wanted = total(needs)
    if wanted <= available:
        return None
    weights = sum({need.model: need.weights for need in needs}.values())
    kv_cache = sum(need.kv_cache for need in needs)
    prompt_cache = sum(need.prompt_cache for need in needs)
    rest = wanted - weights - kv_cache - prompt_cache
    return (
        f"{len(needs)} instance{'s' * (len(needs) != 1)} need{'s' * (len(needs) == 1)} {_gib(wanted)} of memory "
        f"({_gib(weights)} weights, {_gib(kv_cache)} context, {_gib(prompt_cache)} prompt cache, {_gib(rest)} else), "
        f"{_gib(available)} are available: use fewer instances, a smaller ctx_size, parallel or cache_ram, "
        "or switch this check off (memory_check)"
    )


USED = 0.9
"""Share of the machine's memory that servers may come to have: beyond it, it would begin to swap."""
LEAST_SPARE = 512 << 20
"""Bytes: predictions are no better than that."""


def allowances(needs: Sequence[Need], usable: int) -> tuple[int, ...]:
    """Bytes of private memory that each instance may have beyond what it had when it was ready, if nobody says more.

    What it fills only then, its prompt cache and its work space, and an even share of what all predictions together
    leave of the machine. So instances that leak, even all of them, are replaced before the machine swaps, and none is
    replaced that does as predicted. What it has when it is ready is measured and not predicted: whether a
    model's weights are shared pages or private ones, only the server knows.

    Args:
        usable: bytes of the machine.
    """
    if not needs:
        return ()
    spare = max((int(usable * USED) - total(needs)) // len(needs), LEAST_SPARE)
    return tuple(need.prompt_cache + need.overhead + spare for need in needs)


def divided(cores: int, instances: int) -> tuple[int, ...]:
    """Compute threads for each of several instances: all cores, shared out evenly, one for each at least."""
    share, rest = divmod(cores, instances)
    return tuple(max(1, share + (1 if index < rest else 0)) for index in range(instances))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
