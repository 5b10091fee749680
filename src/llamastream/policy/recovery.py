"""How a stream that broke goes on: from what the caller has, why it broke and what the server can do, one decision.

The rules stand in one table, in order: the first that fits decides. The table in the documentation is printed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    EventTooLargeError,
    InternalServerError,
    LlamaStreamError,
    MidStreamError,
    PoolTimeoutError,
    ProtocolError,
    RateLimitedError,
    StreamDivergedError,
    StreamTimeoutError,
    TotalTimeoutError,
    UnavailableError,
    UnexpectedResponseError,
)
from llamastream.types import Capabilities, Failure, JournalState, RecoveryMode

PlanKind: TypeAlias = Literal["finish", "reattach", "continue", "replay", "restart", "non_streaming", "fail"]

REPORTS = 2
"""So many times in a row the same error at about the same place: it is the request's."""
NEAR = 64
"""Characters by which two places may differ: servers do not cut the same text into the same pieces each time."""
FRUITLESS = 3
"""So many answers in a row that begin and break without new content: streaming does not work on this way."""


class RecoveryOptions(Struct, frozen=True):
    """What the caller allows: the mode, how long to try to mend a break (seconds), how many breaks of a stream, and
    whether an answer may come as one piece."""

    mode: RecoveryMode = "full"
    patience: float = 60.0
    breaks: int = 100
    whole: bool = True


class Case(Struct, frozen=True):
    """Everything that a decision rests on."""

    journal: JournalState
    failure: Failure
    capabilities: Capabilities
    options: RecoveryOptions


class Rule(Struct, frozen=True):
    """One line of the table: in words, what it does, and when it fits."""

    when: str
    then: PlanKind
    fits: Callable[[Case], bool]


def _left_behind(case: Case) -> bool:
    return case.failure.kind == "stall" and case.failure.elsewhere


def _reattach(case: Case) -> bool:
    return case.journal.held and case.capabilities.reattach is not False and not _left_behind(case)


def _repeated_only(case: Case) -> bool:
    return case.journal.repeat == "only" or case.capabilities.continues is False


RULES: tuple[Rule, ...] = (
    Rule(
        "all is there but the token counts, and the server holds the generation",
        "reattach",
        lambda case: (
            case.journal.finished
            and not case.journal.counted
            and _reattach(case)
            and case.options.mode != "off"
            and case.failure.kind != "final"
        ),
    ),
    Rule(
        "every choice has its finish reason, only end marks are missing",
        "finish",
        lambda case: case.journal.finished,
    ),
    Rule(
        "another attempt would meet the same (400, 401, 404, total timeout, an event too large, a web page), or what "
        "can only be repeated came out differently",
        "fail",
        lambda case: case.failure.kind == "final" or (case.failure.kind == "diverged" and _repeated_only(case)),
    ),
    Rule(
        "the caller has no content yet (then the rules of retries say when, and how often)",
        "restart",
        lambda case: not case.journal.emitted,
    ),
    Rule(
        "a server that lives reported the same error at about the same place twice in a row",
        "fail",
        lambda case: case.journal.reported >= REPORTS,
    ),
    Rule("recovery is switched off", "fail", lambda case: case.options.mode == "off"),
    Rule(
        "`max_recoveries` breaks of this stream have been mended already",
        "fail",
        lambda case: case.journal.recoveries >= case.options.breaks,
    ),
    Rule(
        "going on was tried for longer than `recovery_patience` (and no server is left that a stall may be left for)",
        "fail",
        lambda case: case.journal.seconds > case.options.patience and not _left_behind(case),
    ),
    Rule(
        "the server holds the generation, and may be alive (not after a stall if there is another server)",
        "reattach",
        _reattach,
    ),
    Rule("only re-attaching is allowed", "fail", lambda case: case.options.mode == "reattach"),
    Rule(
        f"{FRUITLESS} answers in a row began and broke without new content, and one piece is allowed",
        "non_streaming",
        lambda case: case.journal.fruitless >= FRUITLESS and case.options.whole,
    ),
    Rule(
        "tools, several choices, log probabilities, a raw grammar, a schema of a text completion",
        "replay",
        lambda case: case.journal.repeat == "only",
    ),
    Rule(
        "a structured answer (of which the server hides blanks and fences), unless a repetition has differed",
        "replay",
        lambda case: case.journal.repeat == "first" and not case.journal.diverged,
    ),
    Rule(
        "the server cannot continue a begun answer",
        "replay",
        lambda case: case.capabilities.continues is False,
    ),
    Rule("text or reasoning has been given out", "continue", lambda case: True),
)


def same_report(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether two error events, each with the characters that the caller had, are the same one. What stands behind the
    last colon may differ: it is what the model said, or where."""
    (said, at), (before, there) = one, other
    kind, kind_before = (text.rpartition(":")[0] or text for text in (said, before))
    return kind == kind_before and abs(at - there) <= NEAR


def plan(case: Case) -> PlanKind:
    """How to go on."""
    return next(rule.then for rule in RULES if rule.fits(case))


_KINDS: tuple[tuple[type[LlamaStreamError], str], ...] = (
    (TotalTimeoutError, "final"),
    (ConnectTimeoutError, "refused"),
    (PoolTimeoutError, "final"),
    (StreamTimeoutError, "stall"),
    (ConnectError, "refused"),
    (ConnectionLostError, "cut"),
    (EventTooLargeError, "final"),
    (UnexpectedResponseError, "final"),
    (ProtocolError, "cut"),
    (StreamDivergedError, "diverged"),
    (RateLimitedError, "unavailable"),
    (UnavailableError, "unavailable"),
    (InternalServerError, "server_error"),
)


def classify(error: LlamaStreamError, *, elsewhere: bool) -> Failure:
    """What kind of failure an error is. `elsewhere`: another server could go on."""
    if isinstance(error, MidStreamError):
        kind = "final" if error.status is not None and 400 <= error.status < 500 else "server_error"
    else:
        kind = next((kind for known, kind in _KINDS if isinstance(error, known)), "final")
    return Failure(kind=kind, elsewhere=elsewhere)  # type: ignore[arg-type]  # the literals of _KINDS


def delay(failure: Failure, attempts: int, random: float, *, base: float, longest: float) -> float:
    """Seconds before an attempt to go on, after `attempts` others since the last content; `random` in [0, 1).

    The first after a cut goes at once; then exponential backoff with full jitter, as for retries.
    """
    if attempts == 0 and (failure.kind in ("cut", "stall") or failure.elsewhere):
        return 0.0
    return min(longest, base * 2.0 ** min(attempts, 16)) * random
