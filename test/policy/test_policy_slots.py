"""Which slot a request is put into, and when that is known to be free."""

from __future__ import annotations

import pytest

from llamastream.policy.prefixes import Prompt, chained
from llamastream.policy.routing import MISSES, InstanceFacts, Question, Report, Router
from llamastream.policy.scheduling import Scheduler, Ticket
from llamastream.policy.slots import QUEUED, Seat, Slots

SYSTEM = ("system", 4000)


def prompt(*parts: str, size: int = 1000) -> Prompt:
    """A prompt of a system prompt of 4,000 characters, and parts."""
    return Prompt(*chained([SYSTEM, *((part, size) for part in parts)]), session=hash(parts))


def idle(count: int) -> Slots:
    """So many slots, of which it is known that they are free."""
    slots = Slots(count)
    slots.looked(range(count), 0.0)
    return slots


def serve(slots: Slots, asked: Prompt) -> int | None:
    seat = slots.begin(asked, placed=True)
    seat.read()
    seat.leave(complete=True, now=1.0)
    return seat.slot


def test_a_conversation_is_put_into_its_own_slot_though_another_has_the_same_system_prompt() -> None:
    slots = idle(3)
    homes = {name: serve(slots, prompt(name)) for name in "abc"}
    assert len(set(homes.values())) == 3
    for name in "bacba":
        assert serve(slots, prompt(name)) == homes[name]
    assert serve(slots, prompt("a", "answer", "more")) == homes["a"]


def test_a_new_conversation_takes_the_slot_where_the_least_is_lost() -> None:
    slots = idle(2)
    long, short = serve(slots, prompt("a", "b", "c", "d", "e", "f")), serve(slots, prompt("x"))
    assert serve(slots, prompt("new")) == short
    assert serve(slots, prompt("a", "b", "c", "d", "e", "f", "g")) == long


def test_among_equals_the_one_used_longest_ago_is_taken() -> None:
    slots = idle(3)
    homes = [serve(slots, prompt(name)) for name in "abc"]
    assert serve(slots, prompt("b", "again")) == homes[1]
    assert [serve(slots, prompt(name)) for name in ("new", "newer")] == [homes[0], homes[2]]


def test_no_slot_is_given_twice_and_none_that_works() -> None:
    slots = idle(3)
    seats = [slots.begin(prompt("a"), placed=True) for _ in range(4)]
    assert sorted(seat.slot for seat in seats[:3] if seat.slot is not None) == [0, 1, 2]
    assert seats[3].slot is None


def test_before_anybody_looked_the_server_chooses() -> None:
    slots = Slots(2)
    assert slots.unsure
    seat = slots.begin(prompt("a"), placed=True)
    assert seat.slot is None
    assert not slots.may_look(0.0)  # it may be in the server's own line, where a look does not show it
    seat.read()
    slots.looked([1], 0.0)
    assert slots.begin(prompt("b"), placed=True).slot == 1


def test_a_slot_that_was_left_in_the_middle_is_not_free_before_it_is_seen_idle() -> None:
    slots = idle(1)
    seat = slots.begin(prompt("a"), placed=True)
    seat.read()
    seat.leave(complete=False, now=5.0)
    assert slots.unsure
    assert not slots.holds(prompt("a").chain[-1])
    slots.looked([], 5.1)
    assert slots.begin(prompt("a"), placed=False).slot is None
    slots = idle(1)
    seat = slots.begin(prompt("a"), placed=True)
    seat.read()
    seat.leave(complete=False, now=5.0)
    slots.looked([0], 5.1)
    assert slots.holds(prompt("a").chain[-1])
    assert serve(slots, prompt("a", "b")) == 0


def test_what_was_given_up_before_its_first_token_may_still_come_to_a_slot() -> None:
    slots = idle(2)
    slots.begin(prompt("a"), placed=True).leave(complete=False, now=5.0)
    assert not slots.may_look(5.0 + QUEUED / 2)
    slots.looked([0, 1], 5.0 + QUEUED / 2)
    assert slots.unsure
    assert slots.may_look(5.0 + QUEUED)
    slots.looked([0, 1], 5.0 + QUEUED)
    assert not slots.unsure


@pytest.mark.parametrize("complete", [True, False])
def test_a_request_in_a_slot_that_the_server_chose_makes_all_that_are_free_uncertain(complete: bool) -> None:
    slots = idle(3)
    placed = slots.begin(prompt("a"), placed=True)
    other = slots.begin(prompt("b"), placed=False)
    assert other.slot is None
    assert slots.begin(prompt("c"), placed=True).slot is None
    placed.leave(complete=complete, now=1.0)
    assert slots.holds(prompt("a").chain[-1]) is complete


def test_a_slot_holds_only_what_was_put_there_last() -> None:
    slots = idle(1)
    for name in ("a", "b"):
        serve(slots, prompt(name))
    assert slots.holds(prompt("b").chain[-1])
    assert not slots.holds(prompt("a").chain[-1])


def test_what_came_back_in_another_process_is_found_there() -> None:
    before = idle(2)
    homes = {name: serve(before, prompt(name)) for name in "ab"}
    after = Slots(2, before)
    assert after.unsure
    after.looked([0, 1], 0.0)
    assert {name: serve(after, prompt(name, "more")) for name in "ab"} == homes


# -- within routing ---------------------------------------------------------------------------------------------------


def before_ours(count: int = 2, slots: int = 2, **facts: bool) -> tuple[Router, Scheduler]:
    router = Router("expected")
    router.update(InstanceFacts(f"i{number}", slots, generation=1, ours=True, **facts) for number in range(count))
    for number in tuple(router.unsure):
        router.looked(number, range(slots), 0.0)
    return router, Scheduler(router, 100)


def begin(scheduler: Scheduler, asked: Prompt, *, placeable: bool = True) -> Ticket:
    ticket = Ticket(asked)
    ticket.placeable = placeable
    scheduler.submit(ticket, 0.0)
    assert scheduler.dispatch(0.0) == [ticket]
    return ticket


def seat_of(ticket: Ticket) -> Seat:
    assert ticket.seat is not None
    return ticket.seat


def begin_and_end(scheduler: Scheduler, cached: int) -> Ticket:
    """The same prompt again; what it was while it ran."""
    ticket = begin(scheduler, prompt("a"))
    seat = ticket.seat
    scheduler.finish(ticket, Report(1.0, 1250, cached, 10, 100.0), 1.0)
    ticket.seat = seat
    return ticket


WHOLE = Report(1.0, 1000, 900, 10, 100.0)


def test_what_is_in_a_free_slot_is_certain_however_many_came_since() -> None:
    router, scheduler = before_ours(1, slots=4)
    first = begin(scheduler, prompt("a"))
    scheduler.finish(first, WHOLE, 1.0)
    for _ in range(20):
        scheduler.finish(begin(scheduler, prompt("b")), WHOLE, 1.0)
    decision = router.choose(Question(prompt("a", "answer", "more"), 2.0))
    assert decision is not None
    assert (decision.held.parts, decision.held.likely) == (2, 1.0)


def test_only_instances_that_are_ours_get_a_slot() -> None:
    router = Router("expected")
    router.update([InstanceFacts("i0", 2)])
    assert begin(Scheduler(router, 10), prompt("a")).seat is None
    assert not router.unsure
    _, scheduler = before_ours(1)
    assert seat_of(begin(scheduler, prompt("a"))).slot is not None
    assert seat_of(begin(scheduler, prompt("b"), placeable=False)).slot is None


def test_a_request_that_goes_back_into_the_line_has_no_slot_until_it_has_another() -> None:
    router, scheduler = before_ours(2, slots=1)
    ticket = begin(scheduler, prompt("a"))
    here = ticket.instance
    scheduler.give_back(ticket, 1.0, apart=10.0)
    assert ticket.seat is None
    assert router.unsure == {here}
    assert scheduler.dispatch(1.0) == [ticket]
    assert (ticket.instance, seat_of(ticket).slot) == (1 - here, 0)


def test_a_request_that_goes_on_elsewhere_is_in_no_slot_of_our_choice() -> None:
    router, scheduler = before_ours(2)
    ticket = begin(scheduler, prompt("a"))
    scheduler.moved(ticket, 1 - ticket.instance, 1.0)
    assert seat_of(ticket).slot is None
    assert router.unsure == {0, 1}


def test_the_end_of_a_request_of_the_process_before_frees_no_slot_of_this_one() -> None:
    router, scheduler = before_ours(1, slots=1)
    ticket = begin(scheduler, prompt("a"))
    router.update([InstanceFacts("i0", 1, generation=2, ours=True)])
    scheduler.finish(ticket, WHOLE, 1.0)
    assert router.unsure == {0}


def test_a_server_that_does_not_heed_the_choice_is_left_to_itself() -> None:
    router, scheduler = before_ours(1)
    for _ in range(MISSES):
        assert seat_of(begin_and_end(scheduler, cached=900)).slot is not None
    for _ in range(MISSES):
        assert router.instance(0).seats is not None
        begin_and_end(scheduler, cached=0)
    assert router.instance(0).seats is None
    assert begin_and_end(scheduler, cached=0).seat is None


def test_slots_are_looked_at_again_where_an_instance_was_out_of_service() -> None:
    router, scheduler = before_ours(1)
    scheduler.finish(begin(scheduler, prompt("a")), WHOLE, 1.0)
    assert not router.unsure
    router.update([InstanceFacts("i0", 2, routable=False, generation=1, ours=True)])
    assert not router.unsure, "nobody asks it now"
    router.update([InstanceFacts("i0", 2, generation=1, ours=True)])
    assert router.unsure == {0}
