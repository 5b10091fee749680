"""Requests whose server failed them go back into the line, in front, and not to that server as long as it is bad."""

from __future__ import annotations

import pytest

from llamastream.policy.fairness import LineFullError
from llamastream.policy.routing import InstanceFacts, Report, Router
from llamastream.policy.scheduling import Scheduler, Ticket

DONE = Report(1.0)


def made(*slots: int) -> Scheduler:
    router = Router()
    router.update([InstanceFacts(f"i{index}", count) for index, count in enumerate(slots)])
    return Scheduler(router, 1)


def placed(scheduler: Scheduler, count: int) -> list[Ticket]:
    found = [Ticket() for _ in range(count)]
    for ticket in found:
        scheduler.submit(ticket, 0.0)
        assert scheduler.dispatch(0.0) == [ticket]
    return found


def test_it_goes_before_those_that_have_not_begun_and_counts_in_no_limit() -> None:
    scheduler = made(1, 1)
    first, second = placed(scheduler, 2)
    fresh = Ticket(priority="high")
    scheduler.submit(fresh, 1.0)
    scheduler.router.update([InstanceFacts("i0", 1, routable=False), InstanceFacts("i1", 1)])
    scheduler.give_back(first, 2.0, 0.0)
    assert scheduler.dispatch(2.0) == []
    assert (scheduler.waiting, scheduler.active, first.placed) == (2, 1, False)
    with pytest.raises(LineFullError):
        scheduler.submit(Ticket(priority="low"), 3.0)
    scheduler.finish(first, DONE, 3.0)  # it has none: nothing is counted twice
    assert scheduler.active == 1
    scheduler.finish(second, DONE, 4.0)
    assert scheduler.dispatch(4.0) == [first]
    assert (first.instance, fresh.placed) == (1, False)
    scheduler.finish(first, DONE, 5.0)
    assert scheduler.dispatch(5.0) == [fresh]


def test_it_leaves_the_line_as_any_other() -> None:
    scheduler = made(1)
    (only,) = placed(scheduler, 1)
    scheduler.give_back(only, 1.0, 10.0)
    assert scheduler.dispatch(1.0) == []
    scheduler.leave(only)
    assert (scheduler.waiting, scheduler.router.free, scheduler.dispatch(20.0)) == (0, 1, [])


def test_another_instance_first_then_the_same_again() -> None:
    scheduler = made(2, 2)
    (ticket,) = placed(scheduler, 1)
    before = ticket.instance
    scheduler.give_back(ticket, 1.0, 0.0)
    assert scheduler.dispatch(1.0) == [ticket]
    assert ticket.instance == 1 - before
    alone = made(2)
    (ticket,) = placed(alone, 1)
    alone.give_back(ticket, 1.0, 0.0)
    assert alone.dispatch(1.0) == [ticket]


def test_an_instance_that_failed_is_left_alone_for_a_while_unless_it_is_a_new_process() -> None:
    for generation in (0, 1):
        scheduler = made(2)
        (ticket,) = placed(scheduler, 1)
        scheduler.give_back(ticket, 1.0, 0.5)
        assert scheduler.dispatch(1.2) == []
        assert scheduler.wake_at == 1.5
        scheduler.router.update([InstanceFacts("i0", 2, generation=generation)])
        assert scheduler.dispatch(1.3) == [ticket] * generation
        assert scheduler.dispatch(1.5) == [ticket] * (1 - generation)
