"""From models to pools, and from pools to single instances: names, ports, shares of threads and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from llamastream.engine import EngineOptions
from llamastream.engine.needs import BASE, need_of
from llamastream.errors import EngineMemoryError, LlamaStreamError, SettingError
from llamastream.fleet.settings import Pool
from llamastream.policy.budget import Need, allowances, divided, refusal

MAX_INSTANCES = 256


class Plan(Struct, frozen=True):
    """One instance to be: its name, its pool's, and how it is started."""

    id: str
    pool: str
    options: EngineOptions


def as_pools(
    models: EngineOptions | Mapping[str, EngineOptions] | Sequence[Pool] | None, instances: int
) -> tuple[Pool, ...]:
    """Pools from whatever a fleet may be given.

    Raises:
        SettingError: it is none of these.
    """
    if models is None or isinstance(models, EngineOptions):
        options = models or EngineOptions()
        return (Pool(name=pool_name(options), options=options, instances=instances),)
    if isinstance(models, Mapping):
        return tuple(Pool(name=name, options=options, instances=instances) for name, options in models.items())
    pools = tuple(models)
    if not all(isinstance(pool, Pool) for pool in pools):
        raise SettingError("models must be EngineOptions, a mapping of names to EngineOptions, or a list of Pool")
    return pools


def pool_name(options: EngineOptions) -> str:
    """What to call a model that was given no name: its alias, its file's name, or `demo`."""
    name = options.alias or (options.hf or "").partition(":")[0].rpartition("/")[2]
    if not name and options.model is not None:
        name = options.model.replace("\\", "/").rpartition("/")[2].removesuffix(".gguf")
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return kept or "demo"


def plan(pools: Sequence[Pool], *, cores: int, cache_ram: int) -> tuple[Plan, ...]:
    """What each instance is started with. Pure.

    What the options leave open is shared out: compute threads, and memory for prompt caches. With a fixed port the
    instances listen on it and on the ports after it.

    Args:
        cores: cores that may be used. cache_ram: MiB for the prompt caches of all instances together.

    Raises:
        SettingError: the pools contradict each other.
    """
    _check(pools)
    count = sum(pool.instances for pool in pools)
    threads = divided(cores, count)
    plans: list[Plan] = []
    for pool in pools:
        for number in range(pool.instances):
            index = len(plans)
            options = pool.options
            changes: dict[str, object] = {}
            if count > 1:
                if options.threads is None and not _tiny(options):
                    changes["threads"] = threads[index]
                if options.cache_ram is None:
                    changes["cache_ram"] = cache_ram // count
                if options.port:
                    changes["port"] = _port(pools, index)
                if options.socket is not None and number:
                    changes["socket"] = f"{options.socket.removesuffix('.sock')}-{number}.sock"
            plans.append(Plan(f"{pool.name}-{number}", pool.name, msgspec.structs.replace(options, **changes)))
    _check_apart(plans)
    return tuple(plans)


def _check_apart(plans: Sequence[Plan]) -> None:
    """Names and sockets that are made of others may meet."""
    for what, found in (
        ("the name", Counter(each.id for each in plans)),
        ("the socket", Counter(each.options.socket for each in plans if each.options.socket is not None)),
    ):
        for value, times in found.items():
            if times > 1:
                raise SettingError(f"{times} instances would have {what} {value!r}: choose another one for each model")


def _tiny(options: EngineOptions) -> bool:
    # the demo model is best on one thread, which the engine chooses by itself
    return options.model is None and options.hf is None


def _port(pools: Sequence[Pool], index: int) -> int:
    """The port of the instance with this number in the fleet: pools with the same port stand in one row."""
    seen: Counter[int] = Counter()
    for pool in pools:
        for _ in range(pool.instances):
            port = pool.options.port + seen[pool.options.port]
            seen[pool.options.port] += 1
            if index == 0:
                return port
            index -= 1
    raise IndexError(index)


def _check(pools: Sequence[Pool]) -> None:
    count = sum(pool.instances for pool in pools)
    if not count:
        raise SettingError("a fleet needs one instance at least")
    if count > MAX_INSTANCES:
        raise SettingError(f"{count} instances are too many; allowed: 1 to {MAX_INSTANCES} in a fleet")
    for pool in pools:
        if not pool.name or not pool.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise SettingError(
                f"the model's name {pool.name!r} is not allowed; allowed: letters, digits, '-', '_' and '.'"
            )
        if pool.instances < 1:
            raise SettingError(f"instances = {pool.instances} of {pool.name!r} is not allowed; allowed: 1 or more")
    names = Counter(pool.name for pool in pools)
    for name, times in names.items():
        if times > 1:
            raise SettingError(f"there are {times} models with the name {name!r}; each needs a name of its own")
    ports = Counter(_port(pools, index) for index in range(count) if _pool_of(pools, index).options.port)
    for port, times in ports.items():
        if times > 1:
            raise SettingError(f"port {port} would be used by {times} instances: leave room between the ports")
        if port > 65535:
            raise SettingError(f"port {port} is out of range: choose a lower port, since each instance takes the next")


def _pool_of(pools: Sequence[Pool], index: int) -> Pool:
    for pool in pools:
        if index < pool.instances:
            return pool
        index -= pool.instances
    raise IndexError(index)


def check_memory(plans: Sequence[Plan], available: int) -> None:
    """Refuse what cannot fit, before the attempt brings the machine down.

    Args:
        available: bytes that are free now.

    Raises:
        EngineMemoryError: the instances need more than that.
        ModelFileError: a model file cannot be used.
    """
    reason = refusal([need_of(each.id, each.options) for each in plans], available)
    if reason is not None:
        raise EngineMemoryError(reason)


def allowances_of(plans: Sequence[Plan], usable: int) -> dict[str, int]:
    """Bytes that each instance may come to have beyond what it has when it is ready, by its name.

    Args:
        usable: bytes of the machine.
    """
    found = allowances([_need_if_known(each) for each in plans], usable)
    return {each.id: bytes_ for each, bytes_ in zip(plans, found, strict=True)}


def _need_if_known(each: Plan) -> Need:
    try:
        return need_of(each.id, each.options)
    except LlamaStreamError:  # its start will say so
        return Need(name=each.id, model="", weights=0, kv_cache=0, prompt_cache=0, overhead=BASE)
