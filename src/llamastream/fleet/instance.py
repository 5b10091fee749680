"""One supervised llama-server: its thread is the only one that changes its state."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from llamastream.backends import ROUTABLE
from llamastream.engine import Engine, EngineOptions
from llamastream.errors import EngineError, LlamaStreamError
from llamastream.events import InstanceChanged, InstanceWarning, SlotsRestored
from llamastream.fleet import warm
from llamastream.fleet.endings import is_final, why_ended
from llamastream.fleet.orders import Inbox, Order
from llamastream.fleet.run import Drained, Findings, Run
from llamastream.fleet.sessions import is_our_question
from llamastream.fleet.settings import FleetSettings
from llamastream.fleet.starter import place_of
from llamastream.fleet.supervisor import Supervisor
from llamastream.fleet.tally import Tally
from llamastream.fleet.view import View
from llamastream.policy.instances import Trigger, transition
from llamastream.policy.memory import MemoryVerdict
from llamastream.policy.restarts import CrashHistory, GiveUp, crashed, forget_crashes
from llamastream.policy.wedge import Remedy
from llamastream.types import LogRecord

FREE_POLL = 0.1
"""Seconds between two looks whether the address is free that another instance still has."""


class Instance(View):
    """A llama-server that is kept alive."""

    def __init__(
        self,
        id: str,  # noqa: A002  # that is its name everywhere
        model: str,
        options: EngineOptions,
        settings: FleetSettings,
        supervisor: Supervisor,
        *,
        usable_memory: int,
        allowance: int,
        warm_directory: Path | None,
        warm_space: int,
    ) -> None:
        """Nothing is started yet.

        Args:
            usable_memory: bytes of the machine, for limits that are shares. warm_directory: where this instance's slots
                are saved before a planned restart; None: they are not. warm_space: bytes that they may take.
        """
        super().__init__(id, model, options)
        self.allowance = allowance
        self._settings = settings
        self._supervisor = supervisor
        self._usable_memory = usable_memory
        self._warm_directory = warm_directory
        self._warm_space = warm_space
        self._inbox = Inbox()
        self._history = CrashHistory()
        self._start_at = 0.0
        self._wanted: Order | None = None  # a planned restart that waits for its turn
        self._parked: Order | None = None  # one whose process has ended, and waits for an address to start again
        self._away = False  # for a planned restart, since it was our turn
        self._drained_by_hand = False
        self._warned = False
        self._over = False
        self._thread = threading.Thread(target=self._main, name=f"llamastream-{id}", daemon=True)

    # -- from any thread ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the thread, and with it the server."""
        self._thread.start()

    def order(self, order: Order) -> Order:
        """Have something done; `order.done` says when it is."""
        order.instance = self.id
        self._inbox.post(order)
        if order.options is not None:
            self.ordered = order.options
        if order.kind == "stop":
            self._starter.cancel()
        return order

    def hasten(self) -> None:
        """Wait for no running request any more."""
        self._inbox.hasten()

    def nudge(self) -> None:
        """Look again whether a turn has come."""
        self._inbox.wake()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of its thread, after it was told to stop; one that has not begun will find that it was."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def wants_restart(self) -> bool:
        """Whether it waits for its turn, or will as soon as it reads its orders."""
        return self._wanted is not None or self._inbox.holds("restart", "replace")

    @property
    def supervised(self) -> bool:
        """Whether its thread lives, or has ended as it should."""
        return self._over or self._thread.is_alive() or self._thread.ident is None

    # -- its own thread -------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._over:
                order = self._inbox.next(self._rest())
                if order is not None:
                    self._obey(order)
                else:
                    self._tend()
        finally:
            self._want(None)
            self._settle(carried_out=False)
            self._inbox.close()

    def _rest(self) -> float:
        """Seconds until there is something to do by itself."""
        if self._run is not None:
            if self._findings is None:
                return 0.0
            return self._settings.look_interval * (1.0 if self._findings.verdict == "well" else 0.25)
        if self._waits_to_start:
            return max(0.0, self._start_at - time.monotonic())
        return 3600.0

    def _tend(self) -> None:
        """Nobody told us anything: see how it is."""
        run = self._run
        if run is None:
            if self._waits_to_start and time.monotonic() >= self._start_at:
                self._start_if_free(self.status.reason if self.status.generation else "first start")
        elif not run.engine.alive:
            self._ended(run, run.engine.wait(0), run.engine)
        else:
            self._look(run)

    @property
    def _waits_to_start(self) -> bool:
        return self.status.state == "restarting" or not self.status.generation

    def _start_if_free(self, reason: str, saved: list[warm.SavedSlot] | None = None) -> None:
        """Start where it is to listen, unless another instance is there that is about to leave."""
        if self._supervisor.waits_for(self.id, place_of(self.options)) is None:
            self._start(reason, saved)
            self._settle(carried_out=self._run is not None)
        else:
            self._start_at = time.monotonic() + FREE_POLL

    def _settle(self, *, carried_out: bool) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            parked.finish(carried_out=carried_out)

    def _obey(self, order: Order) -> None:
        if order.kind == "stop":
            self._stop(order)
        elif order.kind == "forget":
            self._want(None)
            self.ordered = self.options  # whoever wants others has to say so again
        elif order.kind in ("drain", "undrain"):
            self._drained_by_hand = order.kind == "drain"
            if (self.status.state in ROUTABLE) if order.kind == "drain" else (self.status.state == "draining"):
                self._to(order.kind, order.reason)
        elif self._run is None:
            self.options = order.options or self.options
            self._history = forget_crashes(self._history)
            self._start(order.reason)
        else:
            self._want(order)
            self._go_if_my_turn()
            return  # over when it has been carried out
        order.finish()

    def _want(self, order: Order | None) -> None:
        """From now on this planned restart is waited for (None: none). One that waits already becomes a part of it."""
        before, self._wanted = self._wanted, order
        if before is None:
            return
        if order is None:
            before.finish(carried_out=False)
        else:
            order.options = order.options or before.options  # these are still to be applied
            order.done.add_done_callback(lambda done: before.finish(carried_out=done.result()))

    # -- starting and ending ----------------------------------------------------------------------------------

    def _start(self, reason: str, saved: list[warm.SavedSlot] | None = None) -> None:
        self._to("spawn", reason)
        tally = Tally()

        def heard(record: LogRecord) -> None:
            tally.count(record)
            if not is_our_question(record):
                self._supervisor.log(self.id, record)

        def spawned(pid: int) -> None:
            self.pid = pid
            self._to("spawned", f"process {pid} loads its model")

        try:
            engine = self._starter.start(
                self.options,
                slots=self._warm_here,
                on_log=heard,
                on_spawn=spawned,
                unwanted=self._inbox.stop_wanted,
            )
        except LlamaStreamError as error:
            self.error = error
            self._not_started(error)
            return
        self.error = None
        self.restored = bool(saved) and self._restore(engine, saved or [])
        self._findings = None
        self._run = Run(engine, self._settings, self._usable_memory, self.allowance, tally)
        self._to("loaded", f"ready after {engine.start_seconds:.2f} s")
        if self._drained_by_hand:
            self._to("drain", "drained by hand")
        engine.when_ended(self._inbox.wake)

    @property
    def _warm_here(self) -> Path | None:
        """Where slots are saved for a restart; None where they are not, or the directory for them is the user's own."""
        return self._warm_directory if self.options.slot_save_path is None else None

    def _saw(self, found: Findings) -> None:
        self._findings = found

    def _not_started(self, error: LlamaStreamError) -> None:
        if self._inbox.stop_wanted():
            return  # it was told to stop, which comes next
        exit_code = error.exit_code if isinstance(error, EngineError) else None
        self._crashed(error.message, exit_code, good_for=0.0, final=is_final(error))

    def _ended(self, run: Run, exit_code: int | None, engine: Engine) -> None:
        """The process is gone, and nobody told it to go."""
        self._run = None
        run.end()  # its guard and its pipes
        why = why_ended(exit_code, engine.logs)
        self._crashed(why, exit_code, good_for=run.good_for)

    def _crashed(self, why: str, exit_code: int | None, *, good_for: float, final: bool = False) -> None:
        now = time.monotonic()
        self._history, sequel = crashed(
            self._history, self._settings.restart_policy, now, good_for=good_for, final=final
        )
        self._to("end", why, exit_code)
        if isinstance(sequel, GiveUp):
            self._to("give_up", f"{sequel.reason}; last: {why}")
        else:
            self._start_at = now + sequel.delay

    def _stop(self, order: Order) -> None:
        run = self._run
        code = None
        if run is not None:
            outcome: Drained = "late"
            if order.drain and self.status.state != "wedged":
                if self.status.state != "draining":
                    self._to("drain", order.reason)
                outcome = run.drain(self._settings.drain_timeout, self._inbox.wait, self._saw)
            if outcome == "late":
                run.cancel_held()
            code = run.end(hangs=outcome == "wedged" or self.status.state == "wedged")
            self._run = None
        self._to("stop", order.reason, code)
        self._over = True

    # -- while it runs ----------------------------------------------------------------------------------------

    def _look(self, run: Run) -> None:
        found = self._findings = run.look()
        if not run.engine.alive:
            return  # the loop comes back to that
        if found.verdict == "wedged":
            self._replace_wedged(run)
            return
        if self.status.state == "ready" and found.full:
            self._to("filled", f"all {self.options.parallel} slots are taken")
        elif self.status.state == "busy" and found.full is False:
            self._to("freed", "a slot is free")
        self._mind_memory(found.memory_verdict)
        if self._wanted is None and (reason := run.due()) is not None:
            self._want(Order("restart", reason))
        self._go_if_my_turn()

    def _mind_memory(self, verdict: MemoryVerdict) -> None:
        if verdict.level == "ok":
            self._warned = False
            return
        if not self._warned:
            self._warned = True
            self._warn("memory", verdict.reason)
        if verdict.level == "restart" and self._wanted is None:
            self._want(Order("restart", verdict.reason))

    def _replace_wedged(self, run: Run) -> None:
        """Whoever streams from it is cut off, and goes on elsewhere: that is better than to wait for nothing.

        Not at once, though: what it holds is cancelled, and it may get on again.
        """
        why = run.explain_wedge()
        self._to("wedge", why)
        remedy = run.rescue(self._inbox.wait)
        if remedy != "end":
            self._revived(remedy, why)
            return
        code = run.end(hangs=True)
        self._run = None
        self._crashed(why, code, good_for=run.good_for)

    def _revived(self, remedy: Remedy, why: str) -> None:
        self._warn("wedge", f"it gets on again; before that: {why}")
        self._to("revive", "it gets on again")
        if self._drained_by_hand:
            self._to("drain", "drained by hand")
        if remedy == "replace" and self._wanted is None:
            self._want(Order("restart", "it has hung more than once"))

    def _go_if_my_turn(self) -> None:
        order, run = self._wanted, self._run
        if order is None or run is None or not self._supervisor.may_go(self.id):
            return
        self._wanted, self._away = None, True
        self._replace(run, order)

    def _replace(self, run: Run, order: Order) -> None:
        """A planned restart: no new requests, those that run end, the process ends, and another begins."""
        if self.status.state != "draining":
            self._to("drain", order.reason)
        outcome = run.drain(self._settings.drain_timeout, self._inbox.wait, self._saw)
        if outcome == "late":
            held = run.cancel_held()
            self._warn(
                "drain",
                f"requests still ran after {self._settings.drain_timeout:g} s (drain_timeout), and were cut"
                + (f"; {held} of them were held under an id, and cancelled" if held else ""),
            )
        elif outcome == "wedged":
            self._warn("drain", f"it hangs: {run.explain_wedge()}")
        saved = []
        if outcome == "empty" and order.options is None and self._warm_here:
            saved = warm.save(run.engine, self._warm_here, self._warm_space)
        code = run.end(hangs=outcome == "wedged")
        self._run = None
        self._to("end", order.reason, code)
        self._parked = order
        if self._inbox.stop_wanted():
            return
        self.options = order.options or self.options
        self._start_if_free(order.reason, saved)
        if self._parked is not None and self._away:  # the others go first, one of which is where it is to listen
            self._away = False
            self._supervisor.came_back(self.id, well=True)

    def _restore(self, engine: Engine, saved: list[warm.SavedSlot]) -> bool:
        assert self._warm_directory is not None
        began = time.monotonic()
        size = sum(each.size for each in saved)
        tokens = warm.restore(engine, self._warm_directory, saved)
        self._supervisor.notify(SlotsRestored(self.id, tokens, len(saved), size, time.monotonic() - began))
        return tokens > 0

    # -- telling ------------------------------------------------------------------------------------------------

    def _to(self, trigger: Trigger, reason: str, last_exit: int | None = None) -> None:
        before = self.status
        now = time.time()
        if trigger in ("end", "stop"):
            self.pid = 0
        self.status = after = transition(before, trigger, now, reason, last_exit=last_exit)
        if self._away and after.state in (*ROUTABLE, "failed", "stopped"):
            self._away = False
            self._supervisor.came_back(self.id, well=after.state in ROUTABLE)
        if after.state != before.state:
            self._supervisor.notify(
                InstanceChanged(self.id, before.state, after.state, reason, now, after.generation, after.last_exit)
            )

    def _warn(self, topic: str, message: str) -> None:
        self._supervisor.notify(InstanceWarning(self.id, topic, message, time.time()))
