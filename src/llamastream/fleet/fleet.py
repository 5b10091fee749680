"""A fleet: instances of llama-server that are started together, kept alive, restarted in turn, and drained."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from llamastream.backends import ROUTABLE, Backend
from llamastream.engine import Engine, EngineOptions
from llamastream.engine.machine import cores, default_cache_ram, memory
from llamastream.errors import EngineError, EngineStartTimeoutError, SettingError
from llamastream.events import FleetEvent, FleetListener
from llamastream.fleet.instance import Instance
from llamastream.fleet.orders import Order
from llamastream.fleet.pools import Plan, allowances_of, as_pools, check_memory, plan
from llamastream.fleet.report import InstanceReport
from llamastream.fleet.settings import FleetSettings, Pool
from llamastream.fleet.turns import GONE as GONE
from llamastream.fleet.turns import Turns
from llamastream.fleet.workplace import Workplace, cache_home
from llamastream.settings.sizes import parse_size
from llamastream.types import LogRecord

logger = logging.getLogger("llamastream.fleet")


class Fleet:
    """Supervised llama-servers, for `with`, `async with`, or `start` and `stop`. All methods are thread-safe.

        with Fleet(EngineOptions(model="model.gguf"), instances=2) as fleet:
            client = StreamingClient([backend.url for backend in fleet.snapshot()])

    It is a `BackendSource`: `snapshot` and `subscribe` tell who sends requests where the instances are and which of
    them take any.
    """

    def __init__(
        self,
        models: EngineOptions | Mapping[str, EngineOptions] | Sequence[Pool] | None = None,
        *,
        instances: int | None = None,
        settings: FleetSettings | None = None,
        listeners: Iterable[FleetListener] = (),
        on_log: Callable[[str, LogRecord], None] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            models: how the servers are started: one model, several by name, or pools, each with its own number of
                instances; None: the demo model.
            instances: of each model that is not given as a pool; None: `settings.instances`.
            settings: how they are supervised.
            listeners: called with the events of `llamastream.events`, in the instances' threads; they must not wait.
            on_log: called with an instance's id and each record of its log.

        Raises:
            SettingError: the models contradict each other, or an argument is not allowed.
        """
        self.settings = settings or FleetSettings()
        self._count = self.settings.instances if instances is None else instances
        self.pools = as_pools(models, self._count)
        self._listeners = tuple(listeners)
        self._on_log = on_log
        self._machine = memory()
        self._plans = self._plan(self.pools)
        self._allowances: dict[str, int] = {}
        self._changed = threading.Condition()
        self._subscribers: list[Callable[[], None]] = []
        self._instances: tuple[Instance, ...] = ()
        self._leaving: tuple[Instance, ...] = ()  # no longer in the configuration, and not at their end yet
        self._turns = Turns(self._turn_takers, self.settings.min_ready, self.notify)
        self._workplace: Workplace | None = None
        self._owner = os.getpid()
        self._begun = self._stopped = False

    def _plan(self, pools: Sequence[Pool]) -> tuple[Plan, ...]:
        return plan(pools, cores=cores().usable, cache_ram=default_cache_ram(self._machine.usable))

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start all instances side by side, and wait until each of them is ready.

        Raises:
            LlamaStreamError: one could not be started (see `Launch.start`); then all of them are stopped again.
            EngineMemoryError: together they need more memory than there is.
        """
        with self._changed:
            if self._begun or self._stopped:
                raise SettingError("this fleet has been started: make another one")
            self._begun = True
        if self.settings.memory_check:
            check_memory(self._plans, memory().available)
        if self.settings.warm:
            self._workplace = Workplace(cache_home() / "llamastream" / "slots", f"fleet-{secrets.token_hex(6)}")
        self._allowances = allowances_of(self._plans, self._machine.usable)
        self._instances = tuple(self._instance(each) for each in self._plans)
        try:
            for instance in self._instances:
                instance.begin()
            self._wait_started(self._instances)
        except BaseException:
            self.stop(drain=False)
            raise
        return self

    def _instance(self, each: Plan) -> Instance:
        directory = None
        if self._workplace is not None:
            directory = self._workplace.path / each.id
            directory.mkdir(mode=0o700, exist_ok=True)
        space = parse_size(self.settings.warm_space, self._machine.usable) or 0
        return Instance(
            each.id,
            each.pool,
            each.options,
            self.settings,
            self,
            usable_memory=self._machine.usable,
            allowance=self._allowances[each.id],
            warm_directory=directory,
            warm_space=space // len(self._plans),
        )

    def _wait_started(self, instances: Sequence[Instance]) -> None:
        with self._changed:
            while True:
                if self._stopped:
                    raise EngineError("the start was cancelled")
                for instance in instances:
                    if instance.error is not None and instance.status.state in ("restarting", "failed"):
                        raise instance.error
                if all(instance.status.state in (*ROUTABLE, "draining") for instance in instances):
                    return  # one that was drained by hand meanwhile has been started, too
                self._changed.wait()

    def wait_ready(self, count: int | None = None, timeout: float | None = None) -> None:
        """Wait until so many instances take requests (None: all that are not failed or stopped, and one at least).

        Raises:
            EngineStartTimeoutError: they do not within `timeout` seconds (None: no limit).
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._enough(count):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    states = ", ".join(f"{each.id} is {each.status.state}" for each in self._instances)
                    raise EngineStartTimeoutError(f"not ready within {timeout:g} s: {states}")
                self._changed.wait(left)

    def _enough(self, count: int | None) -> bool:
        ready = sum(each.status.state in ROUTABLE for each in self._instances)
        living = sum(each.status.state not in GONE for each in self._instances)
        return ready >= max(1, living if count is None else count)

    def stop(self, *, drain: bool = True) -> None:
        """Stop all instances side by side; with `drain`, running requests may take `drain_timeout`. Idempotent."""
        if os.getpid() != self._owner:
            return  # a forked copy of us owns nothing here
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if not drain:
            self.hasten()
        everyone = (*self._instances, *self._still_leaving())
        for instance in everyone:
            instance.order(Order("stop", "the fleet is stopped", drain=drain))
        for instance in everyone:
            instance.join()
        if self._workplace is not None:
            self._workplace.close()

    def hasten(self) -> None:
        """Wait for no running request any more: for a second signal during `stop`."""
        for instance in (*self._instances, *self._still_leaving()):
            instance.hasten()

    async def astart(self) -> Self:
        """`start` for coroutines; a cancelled start leaves no server behind."""
        import asyncio  # costs memory that a supervisor without coroutines need not spend

        starting = asyncio.get_running_loop().run_in_executor(None, self.start)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.stop, drain=False)
            await asyncio.wait([starting])  # which stops what it has begun meanwhile
            raise
        return self

    async def astop(self, *, drain: bool = True) -> None:
        """`stop` for coroutines."""
        import asyncio  # costs memory that a supervisor without coroutines need not spend

        await asyncio.to_thread(self.stop, drain=drain)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(drain=kind is None)

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.astop(drain=kind is None)

    # -- a source of backends -------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Backend, ...]:
        """All instances as those see them who send requests."""
        return tuple(instance.backend() for instance in self._instances)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change of state, in the instance's thread; what comes back ends that."""
        with self._changed:
            self._subscribers.append(listener)

        def end() -> None:
            with self._changed:
                if listener in self._subscribers:
                    self._subscribers.remove(listener)

        return end

    # -- control --------------------------------------------------------------------------------------------------

    def status(self) -> tuple[InstanceReport, ...]:
        """All instances as people see them; last those that are about to leave after a reload."""
        return tuple(instance.report() for instance in (*self._instances, *self._still_leaving()))

    @property
    def supervised(self) -> bool:
        """Whether every instance still has its thread; if not, there is a mistake in this program."""
        return all(instance.supervised for instance in self._instances)

    def engine(self, id: str) -> Engine | None:  # noqa: A002
        """The running server of an instance, None if none runs at the moment.

        Raises:
            SettingError: there is no such instance.
        """
        return self._find(id).engine

    def logs(self, id: str) -> list[LogRecord]:  # noqa: A002  # that is its name everywhere
        """The last log records of an instance's present (or last) process.

        Raises:
            SettingError: there is no such instance.
        """
        return self._find(id).logs()

    def restart(self, id: str, reason: str = "asked for") -> Order:  # noqa: A002
        """Replace an instance by a fresh one when its turn comes: drained first, its prompt caches kept; one that
        failed is started at once. `order.done.result()` waits for it.

        Raises:
            SettingError: there is no such instance.
        """
        return self._find(id).order(Order("restart", reason))

    def restart_all(self, reason: str = "rolling restart") -> list[Order]:
        """Replace all instances, one after the other, with `min_ready` of them ready all the while."""
        return [instance.order(Order("restart", reason)) for instance in self._instances]

    def drain(self, id: str, reason: str = "drained by hand") -> Order:  # noqa: A002
        """Send an instance no new requests (whoever follows `snapshot`), until `undrain` or a restart.

        Raises:
            SettingError: there is no such instance.
        """
        return self._find(id).order(Order("drain", reason))

    def undrain(self, id: str, reason: str = "takes requests again") -> Order:  # noqa: A002
        """End `drain`.

        Raises:
            SettingError: there is no such instance.
        """
        return self._find(id).order(Order("undrain", reason))

    def reload(self, models: EngineOptions | Mapping[str, EngineOptions] | Sequence[Pool]) -> list[Order]:
        """Apply other options: instances whose options changed are replaced, one after the other; those that are no
        longer wanted are drained and stopped; new ones are started.

        Returns:
            An order for each instance that is replaced or stopped.

        Raises:
            SettingError: the models contradict each other; nothing has changed then.
            EngineMemoryError: what changes, and what is new, needs more memory than there is; the same.
        """
        pools = as_pools(models, self._count)
        plans = self._plan(pools)
        known = {instance.id: instance for instance in self._instances}
        added = [each for each in plans if each.id not in known]
        changed = [each for each in plans if each.id in known and known[each.id].ordered != each.options]
        if self.settings.memory_check and (added or changed):
            # each of these ends before its successor begins; those that leave may still be there then
            freed = sum(known[each.id].report().rss_bytes for each in changed)
            check_memory([*added, *changed], memory().available + freed)
        self.pools, self._plans = pools, plans
        self._allowances = allowances_of(plans, self._machine.usable)
        for instance in self._instances:
            instance.allowance = self._allowances.get(instance.id, instance.allowance)
        orders = [
            known[each.id].order(Order("replace", "the configuration changed", options=each.options))
            for each in changed
        ]
        wanted = {each.id for each in plans}
        leaving = [instance for instance in self._instances if instance.id not in wanted]
        orders += [instance.order(Order("stop", "no longer in the configuration")) for instance in leaving]
        fresh = {each.id: self._instance(each) for each in added}
        self._leaving = (*self._still_leaving(), *leaving)
        self._instances = tuple(known.get(each.id) or fresh[each.id] for each in plans)
        for instance in fresh.values():
            instance.begin()
        return orders

    def _turn_takers(self) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
        return self._instances, self._still_leaving()

    def _still_leaving(self) -> tuple[Instance, ...]:
        return tuple(instance for instance in self._leaving if instance.status.state != "stopped")

    def _find(self, id: str) -> Instance:  # noqa: A002
        for instance in self._instances:
            if instance.id == id:
                return instance
        known = ", ".join(instance.id for instance in self._instances) or "none"
        raise SettingError(f"there is no instance {id!r}; there are: {known}")

    # -- what instances ask (see `Supervisor`) ------------------------------------------------------------------------

    def notify(self, event: FleetEvent) -> None:
        """For instances: something happened."""
        for listener in self._listeners:
            _call(listener, event)
        with self._changed:
            self._changed.notify_all()
            subscribers = tuple(self._subscribers)
        for subscriber in subscribers:
            _call(subscriber)

    def log(self, instance: str, record: LogRecord) -> None:
        """For instances: the server said something."""
        if self._on_log is not None:
            _call(self._on_log, instance, record)

    def may_go(self, instance: str) -> bool:
        """For instances: whether it is this one's turn for a planned restart."""
        return self._turns.may_go(instance)

    def waits_for(self, instance: str, place: str) -> str | None:
        """For instances: who has to leave before this one can listen at this place."""
        return self._turns.waits_for(instance, place)

    def came_back(self, instance: str, *, well: bool) -> None:
        """For instances: this one's planned restart is over."""
        self._turns.came_back(instance, well=well)


def _call(function: Callable[..., object], *arguments: object) -> None:
    """Call a listener; what it raises goes no further."""
    try:
        function(*arguments)
    except Exception:
        logger.exception("a listener of the fleet failed")
