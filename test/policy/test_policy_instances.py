"""The life of an instance: every transition of the table, and none beside it."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from llamastream.backends import InstanceState
from llamastream.policy.instances import STATES, TRANSITIONS, InstanceStatus, TransitionError, Trigger, transition

ALL_STATES: tuple[InstanceState, ...] = get_args(InstanceState)
ALL_TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)


def test_every_state_is_described_and_has_a_way_out_and_a_way_in() -> None:
    assert set(STATES) == set(TRANSITIONS) == set(ALL_STATES)
    reached = {to for ways in TRANSITIONS.values() for to in ways.values()}
    assert reached == set(ALL_STATES)
    assert all(TRANSITIONS[state] for state in ALL_STATES)


@pytest.mark.parametrize(("state", "trigger"), list(product(ALL_STATES, ALL_TRIGGERS)))
def test_a_transition_is_in_the_table_or_refused(state: InstanceState, trigger: Trigger) -> None:
    before = InstanceStatus(state=state, since=1.0, generation=1)
    if trigger in TRANSITIONS[state]:
        after = transition(before, trigger, 5.0, "why")
        assert (after.state, after.reason) == (TRANSITIONS[state][trigger], "why")
        assert after.since == (5.0 if after.state != state else 1.0)
    else:
        with pytest.raises(TransitionError, match=trigger):
            transition(before, trigger, 5.0, "why")


@pytest.mark.parametrize("state", ALL_STATES)
def test_everything_can_be_stopped(state: InstanceState) -> None:
    assert transition(InstanceStatus(state=state), "stop", 1.0, "asked for").state == "stopped"


def test_starts_are_counted_and_the_exit_code_is_kept() -> None:
    status = transition(InstanceStatus(), "spawn", 1.0, "first start")
    assert (status.generation, status.restarts) == (1, 0)
    for trigger in ("spawned", "loaded"):
        status = transition(status, trigger, 2.0, "")
    status = transition(status, "end", 3.0, "killed", last_exit=-9)
    status = transition(status, "spawn", 4.0, "again")
    assert (status.generation, status.restarts, status.last_exit) == (2, 1, -9)
