"""The decision table of recovery, tested as a table; what kind of failure each error is; when the next attempt goes."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest

from llamastream import errors
from llamastream.errors import LlamaStreamError, MidStreamError
from llamastream.policy.recovery import (
    FRUITLESS,
    NEAR,
    RULES,
    Case,
    RecoveryOptions,
    classify,
    delay,
    plan,
    same_report,
)
from llamastream.types import Capabilities, Failure, JournalState


class Row(NamedTuple):
    """A case, as differences from: text was given out, then the connection was cut; nothing is held or known."""

    name: str
    then: str
    journal: dict[str, Any] = {}  # noqa: RUF012
    failure: dict[str, Any] = {}  # noqa: RUF012
    server: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012

    @property
    def case(self) -> Case:
        return Case(
            JournalState(**{"emitted": True, **self.journal}),
            Failure(**{"kind": "cut", **self.failure}),
            Capabilities(**self.server),
            RecoveryOptions(**self.options),
        )


HELD = {"held": True}
DONE = {"finished": True}
LOST_COUNTS = {"finished": True, "counted": False, "held": True}
STALL = {"kind": "stall"}
STALL_WITH_ANOTHER = {"kind": "stall", "elsewhere": True}
FINAL = {"kind": "final"}
DIVERGED = {"kind": "diverged"}
LATE = {"seconds": 60.5}
VAIN = {"fruitless": FRUITLESS}

ROWS = [
    # All is there but the counts.
    Row("counts lost, held", "reattach", LOST_COUNTS),
    Row("counts lost, held, max_recoveries reached", "reattach", {**LOST_COUNTS, "recoveries": 100}),
    Row("counts lost, held, after the patience", "reattach", {**LOST_COUNTS, **LATE}),
    Row("counts lost, held, only re-attaching allowed", "reattach", LOST_COUNTS, options={"mode": "reattach"}),
    Row("counts lost, not held", "finish", {**LOST_COUNTS, "held": False}),
    Row("counts lost, held, switched off", "finish", LOST_COUNTS, options={"mode": "off"}),
    Row("counts lost, held, final", "finish", LOST_COUNTS, FINAL),
    Row("counts lost, held by a server that cannot", "finish", LOST_COUNTS, server={"reattach": False}),
    Row("counts lost, held, stalled, another server", "finish", LOST_COUNTS, STALL_WITH_ANOTHER),
    Row("counts lost, held, stalled, no other server", "reattach", LOST_COUNTS, STALL),
    # Only end marks are missing.
    Row("finished and counted", "finish", DONE),
    Row("finished and counted, held", "finish", {**DONE, **HELD}),
    Row("finished, then a final error", "finish", DONE, FINAL),
    Row("finished, switched off", "finish", DONE, options={"mode": "off"}),
    Row("finished after the patience", "finish", {**DONE, **LATE, "recoveries": 1000}),
    Row("finished, to be repeated only, diverged", "finish", {**DONE, "repeat": "only"}, DIVERGED),
    # What another attempt would meet again.
    Row("a final error", "fail", failure=FINAL),
    Row("a final error, held", "fail", HELD, FINAL),
    Row("a final error before content", "fail", {"emitted": False}, FINAL),
    Row("a repetition differed, and there is no other way", "fail", {"repeat": "only"}, DIVERGED),
    Row("the same, held", "fail", {"repeat": "only", **HELD}, DIVERGED),
    Row("a structured answer differed", "continue", {"repeat": "first", "diverged": True}, DIVERGED),
    Row("a repetition of a text differed", "continue", {"diverged": True}, DIVERGED),
    Row(
        "a repetition of a text differed, and the server cannot continue",
        "fail",
        {"diverged": True},
        DIVERGED,
        {"continues": False},
    ),
    Row(
        "a structured answer differed, and the server cannot continue",
        "fail",
        {"repeat": "first", "diverged": True},
        DIVERGED,
        {"continues": False},
    ),
    # No content yet.
    Row("no content", "restart", {"emitted": False}),
    Row("no content, held", "restart", {"emitted": False, **HELD}),
    Row("no content, recovery switched off", "restart", {"emitted": False}, options={"mode": "off"}),
    Row("no content, a stall", "restart", {"emitted": False}, STALL),
    # The same error of a server that lives.
    Row("an error of the server", "continue", {"reported": 1}, {"kind": "server_error"}),
    Row("the same error again", "fail", {"reported": 2}, {"kind": "server_error"}),
    Row("the same error again, held, another server", "fail", {"reported": 2, **HELD}, {"elsewhere": True}),
    # Switched off.
    Row("switched off", "fail", options={"mode": "off"}),
    Row("switched off, held", "fail", HELD, options={"mode": "off"}),
    # max_recoveries.
    Row("one break more is allowed", "continue", {"recoveries": 99}),
    Row("no break more is allowed", "fail", {"recoveries": 100}),
    Row("no break more is allowed, held", "fail", {"recoveries": 100, **HELD}),
    Row("no break at all is allowed", "fail", HELD, options={"breaks": 0}),
    Row("the last break that is allowed", "reattach", {"recoveries": 1, **HELD}, options={"breaks": 2}),
    # The patience.
    Row("at the end of the patience", "continue", {"seconds": 60.0}),
    Row("after the patience", "fail", LATE),
    Row("after the patience, held", "fail", {**LATE, **HELD}),
    Row("a longer patience", "continue", LATE, options={"patience": 61.0}),
    Row("after the patience, a stall", "fail", LATE, STALL),
    Row("after the patience, a cut, another server", "fail", LATE, {"elsewhere": True}),
    Row("after the patience, a stall, another server", "continue", LATE, STALL_WITH_ANOTHER),
    # Re-attaching.
    Row("held", "reattach", HELD),
    Row("held, by a server that can", "reattach", HELD, server={"reattach": True}),
    Row("held, by a server that cannot", "continue", HELD, server={"reattach": False}),
    Row("held, stalled, no other server", "reattach", HELD, STALL),
    Row("held, stalled, another server", "continue", HELD, STALL_WITH_ANOTHER),
    Row("held, cut, another server", "reattach", HELD, {"elsewhere": True}),
    Row("held, refused", "reattach", HELD, {"kind": "refused"}),
    Row("held, unavailable", "reattach", HELD, {"kind": "unavailable"}),
    Row("held, an error of the server", "reattach", HELD, {"kind": "server_error"}),
    Row("held, structured", "reattach", {**HELD, "repeat": "first"}),
    Row("held, to be repeated only", "reattach", {**HELD, "repeat": "only"}),
    Row("held, in vain", "reattach", {**HELD, **VAIN}),
    # Only re-attaching is allowed.
    Row("only re-attaching, held", "reattach", HELD, options={"mode": "reattach"}),
    Row("only re-attaching, not held", "fail", options={"mode": "reattach"}),
    Row("only re-attaching, in vain", "fail", VAIN, options={"mode": "reattach"}),
    Row("only re-attaching, to be repeated", "fail", {"repeat": "only"}, options={"mode": "reattach"}),
    # One piece.
    Row("in vain", "non_streaming", VAIN),
    Row("in vain, one time less", "continue", {"fruitless": FRUITLESS - 1}),
    Row("in vain, one piece is not allowed", "continue", VAIN, options={"whole": False}),
    Row("in vain, to be repeated only", "non_streaming", {**VAIN, "repeat": "only"}),
    Row("in vain, structured", "non_streaming", {**VAIN, "repeat": "first"}),
    Row("in vain, the server cannot continue", "non_streaming", VAIN, server={"continues": False}),
    Row("in vain, not held any more", "non_streaming", {**VAIN, **HELD}, server={"reattach": False}),
    # Repeat and compare.
    Row("to be repeated only", "replay", {"repeat": "only"}),
    Row("to be repeated only, in vain, no whole", "replay", {"repeat": "only", **VAIN}, options={"whole": False}),
    Row("to be repeated only, by a server that continues", "replay", {"repeat": "only"}, server={"continues": True}),
    Row("to be repeated only, has differed before", "replay", {"repeat": "only", "diverged": True}),
    Row("structured", "replay", {"repeat": "first"}),
    Row("structured, has differed before", "continue", {"repeat": "first", "diverged": True}),
    Row(
        "structured, has differed before, the server cannot continue",
        "replay",
        {"repeat": "first", "diverged": True},
        server={"continues": False},
    ),
    Row("the server cannot continue", "replay", server={"continues": False}),
    # Continue.
    Row("a text", "continue"),
    Row("a text, the server continues", "continue", server={"continues": True}),
    *(
        Row(f"a text, {kind}", "continue", failure={"kind": kind})
        for kind in ("stall", "refused", "unavailable", "server_error")
    ),
]


def test_the_same_error_at_about_the_same_place() -> None:
    assert same_report(("no memory", 100), ("no memory", 100 + NEAR))
    assert not same_report(("no memory", 100), ("no memory", 101 + NEAR))
    assert same_report(("empty stack: x (38)", 100), ("empty stack: y (7)", 100))
    assert not same_report(("no memory", 100), ("another", 100))
    assert not same_report(("empty stack: x", 100), ("decode failed: x", 100))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_decision(row: Row) -> None:
    assert plan(row.case) == row.then


def test_every_rule_decides_one_of_these_cases() -> None:
    deciding = {next(rule.when for rule in RULES if rule.fits(row.case)) for row in ROWS}
    assert deciding == {rule.when for rule in RULES}


def test_the_last_rule_fits_whatever_comes() -> None:
    assert all(RULES[-1].fits(row.case) for row in ROWS)
    assert [rule.when for rule in RULES[:-1] if all(rule.fits(row.case) for row in ROWS)] == []


def test_the_rules_are_in_words_of_their_own() -> None:
    assert len({rule.when for rule in RULES}) == len(RULES)


# -- what an error is ---------------------------------------------------------------------------------------


KINDS: dict[str, str] = {
    "LlamaStreamError": "final",
    "SettingError": "final",
    "InvalidRequestError": "final",
    "StreamConsumedError": "final",
    "MissingDependencyError": "final",
    "TransportError": "final",  # never raised itself
    "ConnectError": "refused",
    "ConnectionLostError": "cut",
    "StreamTruncatedError": "cut",
    "StreamTimeoutError": "stall",
    "ConnectTimeoutError": "refused",
    "PoolTimeoutError": "final",
    "FirstByteTimeoutError": "stall",
    "PrefillTimeoutError": "stall",
    "ContentIdleTimeoutError": "stall",
    "TotalTimeoutError": "final",
    "ProtocolError": "cut",
    "UnexpectedResponseError": "final",
    "EventTooLargeError": "final",
    "ServerError": "final",
    "BadRequestError": "final",
    "ContextSizeError": "final",
    "AuthenticationError": "final",
    "PermissionDeniedError": "final",
    "NotFoundError": "final",
    "RateLimitedError": "unavailable",
    "InternalServerError": "server_error",
    "NotSupportedError": "final",
    "ToolsUnsupportedError": "final",
    "MalformedOutputError": "final",
    "UnavailableError": "unavailable",
    "ModelLoadingError": "unavailable",
    "MidStreamError": "server_error",
    "StreamDivergedError": "diverged",
    "EngineError": "final",
    "EngineMissingError": "final",
    "ModelFileError": "final",
    "ModelDownloadError": "final",
    "PortInUseError": "final",
    "UnsupportedFlagError": "final",
    "EngineMemoryError": "final",
    "EngineCrashedError": "final",
    "EngineStartTimeoutError": "final",
    "BenchError": "final",
    "TrialFailedError": "final",
}


def error_classes() -> dict[str, type[LlamaStreamError]]:
    return {
        name: found
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, LlamaStreamError) and found.__module__ == errors.__name__
    }


def test_this_table_has_every_error() -> None:
    assert error_classes().keys() == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["alone", "another server"])
def test_what_kind_of_failure_an_error_is(name: str, elsewhere: bool) -> None:
    failure = classify(error_classes()[name]("it broke"), elsewhere=elsewhere)
    assert (failure.kind, failure.elsewhere) == (KINDS[name], elsewhere)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (None, "server_error"),
        (200, "server_error"),
        (399, "server_error"),
        (400, "final"),
        (429, "final"),
        (499, "final"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_inside_a_stream_is_judged_by_its_code(status: int | None, kind: str) -> None:
    assert classify(MidStreamError("it broke", status=status), elsewhere=False).kind == kind


# -- when the next attempt goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "elsewhere", "seconds"),
    [
        ("cut", False, 0.0),
        ("stall", False, 0.0),
        ("refused", True, 0.0),
        ("server_error", True, 0.0),
        ("refused", False, 0.125),
        ("unavailable", False, 0.125),
        ("server_error", False, 0.125),
    ],
)
def test_the_first_attempt_goes_at_once_unless_the_server_is_known_to_be_down(
    kind: Any, elsewhere: bool, seconds: float
) -> None:
    assert delay(Failure(kind=kind, elsewhere=elsewhere), 0, 0.5, base=0.25, longest=2.0) == seconds


@pytest.mark.parametrize("kind", ["cut", "stall", "refused"])
def test_further_attempts_wait_longer_and_longer_up_to_a_bound(kind: Any) -> None:
    failure = Failure(kind=kind)
    waits = [delay(failure, attempts, 0.5, base=0.25, longest=2.0) for attempts in range(1, 6)]
    assert waits == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert delay(failure, 100_000, 0.5, base=0.25, longest=2.0) == 1.0
    assert delay(failure, 3, 0.0, base=0.25, longest=2.0) == 0.0


def test_another_server_is_asked_at_once_only_the_first_time() -> None:
    assert delay(Failure(kind="cut", elsewhere=True), 1, 0.5, base=0.25, longest=2.0) > 0
