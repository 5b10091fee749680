"""Who goes next, and where: the line, the slots, and the choice of an instance, as one machine without a clock.

Never more requests are sent to an instance than it has slots. The first in line goes, unless waiting for an instance
that has its prompt brings its first token sooner; then the next one is looked at, `LOOK` at most. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable

from llamastream.policy.fairness import FairLine, Priority
from llamastream.policy.prefixes import NO_PROMPT, Prompt
from llamastream.policy.routing import Decision, Question, Report, Router
from llamastream.policy.slots import Seat

LOOK = 16
"""Requests in line that are looked at for one free slot."""
PATIENCE = 2.0
"""A request waits for an instance at most so many times as long as it was expected to."""


class Ticket:
    """A request that waits for a slot, or has one.

    Attributes:
        key, weight, priority: whose it is, and how that counts. prompt: what it asks. arrived: when.
        number: its place in line, or None. decision: where it was sent. instance: where it is now, or was last.
        placed: it has a slot. seat: which, where that is chosen here. placeable: its body can say so.
        avoided: instances that failed it, with the process that did, and until when it does not go there at all;
            later it does if there is no other.
    """

    __slots__ = (
        "arrived",
        "avoided",
        "decision",
        "instance",
        "key",
        "number",
        "patient_until",
        "placeable",
        "placed",
        "priority",
        "prompt",
        "reading",
        "seat",
        "weight",
    )

    def __init__(
        self,
        prompt: Prompt = NO_PROMPT,
        key: str = "",
        weight: float = 1.0,
        priority: Priority = "normal",
    ) -> None:
        self.key = key
        self.weight = weight
        self.priority: Priority = priority
        self.prompt = prompt
        self.arrived = 0.0
        self.number: int | None = None
        self.decision: Decision | None = None
        self.instance = -1
        self.placed = False
        self.placeable = False
        self.seat: Seat | None = None
        self.patient_until = 0.0
        self.reading = False
        self.avoided: dict[int, tuple[int, float]] = {}


class Scheduler:
    """The line before the slots of some instances.

    Attributes:
        router: decides where. line: who waits. returned: who had a slot that came to nothing, and goes before those.
        active: requests at work.
        wake_at: when to call `dispatch` even if nothing happens; None: there is no need.
    """

    def __init__(self, router: Router, limit: int, limit_per_key: int | None = None) -> None:
        self.router = router
        self.line: FairLine[Ticket] = FairLine(limit, limit_per_key)
        self.returned: list[Ticket] = []
        self.active = 0
        self.wake_at: float | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self.line) + len(self.returned)

    def submit(self, ticket: Ticket, now: float) -> Ticket | None:
        """A request comes; the one that lost its place to it, if any. While there are free slots it may come although
        the line is full: if it still waits after `dispatch`, `turn_away` decides.

        Raises:
            LineFullError: there is no place for it.
        """
        ticket.arrived = now
        ticket.number, lost = self.line.push(
            ticket, ticket.key, ticket.weight, ticket.priority, beyond=self.router.free > 0
        )
        if lost is not None:
            lost.number = None
        return lost

    def turn_away(self, ticket: Ticket) -> None:
        """Have a request that waits leave if there is no place for it.

        Raises:
            LineFullError: there is none.
        """
        error = self.line.overfull(ticket.key) if ticket.number is not None else None
        if error is not None:
            self.leave(ticket)
            raise error

    def leave(self, ticket: Ticket) -> None:
        """A request leaves the line."""
        if ticket in self.returned:
            self.returned.remove(ticket)
        if ticket.number is not None:
            self.line.remove(ticket.number)
            ticket.number = None

    def dispatch(self, now: float, blocked: Callable[[int], bool] | None = None) -> list[Ticket]:
        """The requests that go now, each with its `decision`.

        Args:
            blocked: whether an instance, by its number, failed lately and is left alone if there is another.
        """
        router, line = self.router, self.line
        ahead: dict[int, int] = {}
        waits: set[int] = set()
        self.wake_at = None
        gone = [ticket for ticket in tuple(self.returned) if self._goes_again(ticket, now, blocked)]
        more = True
        while more and len(line) and router.free > 0:
            more = False
            for number, ticket in line.order():
                if number in waits:
                    continue
                if len(waits) >= LOOK:
                    break
                patient = now < ticket.patient_until or not ticket.patient_until
                question = Question(ticket.prompt, now, ahead, patient, len(line) - 1)
                decision = router.choose(question, blocked)
                if decision is None or decision.wait:
                    waits.add(number)
                    if decision is not None:
                        ahead[decision.instance] = ahead.get(decision.instance, 0) + 1
                        self._be_patient(ticket, decision, now)
                    continue
                line.take(number)
                self._begin(ticket, decision, now)
                gone.append(ticket)
                more = True
                break
        return gone

    def give_back(self, ticket: Ticket, now: float, apart: float) -> None:
        """The instance of a request failed it: it goes back into the line, before all that have not begun, since it
        has waited already. `apart`: seconds for which it does not go to that instance, unless that is a new process;
        after them it does if there is no other."""
        number = ticket.instance
        self.finish(ticket, Report(0.0), now)
        ticket.decision = None
        if (generation := self.router.generation(number)) is not None:
            ticket.avoided[number] = generation, now + apart
        self.returned.append(ticket)

    def _goes_again(self, ticket: Ticket, now: float, blocked: Callable[[int], bool] | None) -> bool:
        router = self.router
        avoided = {
            number: until
            for number, (generation, until) in ticket.avoided.items()
            if router.generation(number) == generation
        }

        def left_alone(number: int) -> bool:
            return number in avoided or (blocked is not None and blocked(number))

        if router.free <= 0:
            return False
        decision = router.choose(Question(ticket.prompt, now, patient=False), left_alone)
        if decision is None or decision.wait:
            return False
        until = avoided.get(decision.instance, 0.0)
        if until > now:
            self.wake_at = until if self.wake_at is None else min(self.wake_at, until)
            return False
        self.returned.remove(ticket)
        self._begin(ticket, decision, now)
        return True

    def _be_patient(self, ticket: Ticket, decision: Decision, now: float) -> None:
        if not ticket.patient_until:
            ticket.patient_until = now + PATIENCE * decision.wait
        if ticket.patient_until > now and (self.wake_at is None or ticket.patient_until < self.wake_at):
            self.wake_at = ticket.patient_until

    def _begin(self, ticket: Ticket, decision: Decision, now: float) -> None:
        ticket.seat = self.router.begin(decision, ticket.prompt, now, placed=ticket.placeable)
        ticket.number = None
        ticket.decision = decision
        ticket.instance = decision.instance
        ticket.placed = ticket.reading = True
        self.active += 1

    def moved(self, ticket: Ticket, instance: int, now: float) -> None:
        """A request goes on at another instance."""
        if instance != ticket.instance:
            self._leave_seat(ticket, now, complete=False)
            self.read(ticket, now)
            ticket.seat = self.router.moved(ticket.instance, instance, ticket.prompt)
            ticket.instance = instance

    def read(self, ticket: Ticket, now: float) -> None:
        """The first token of a request is there."""
        if ticket.reading:
            ticket.reading = False
            if ticket.seat is not None:
                ticket.seat.read()
            self.router.read(ticket.instance, now)

    def finish(self, ticket: Ticket, report: Report, now: float) -> None:
        """A request is over, in whatever way; nothing happens if it has no slot."""
        if not ticket.placed:
            return
        ticket.placed = False
        assert ticket.decision is not None
        self._leave_seat(ticket, now, complete=report.answer_tokens is not None)
        self.read(ticket, now)
        self.active -= 1
        self.router.end(ticket.instance, ticket.decision, ticket.prompt, report)

    def _leave_seat(self, ticket: Ticket, now: float, *, complete: bool) -> None:
        if ticket.seat is not None:
            ticket.seat.leave(complete=complete, now=now)
            ticket.seat = None
            self.router.left(ticket.instance)
