"""What follows an attempt that failed: another one, when, and what for; or the end of the stream."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from llamastream.client.attempts import AttemptPlanner
from llamastream.client.state import ClientState
from llamastream.errors import LlamaStreamError, MalformedOutputError, ModelLoadingError, ServerError
from llamastream.policy.recovery import classify, delay
from llamastream.policy.retry import RetryState, too_long
from llamastream.protocol.failures import streaming_unsupported
from llamastream.types import Fallback

LONGEST_RECOVERY_DELAY = 2.0
"""Seconds between two attempts to go on, at most."""


class FailedAt(Struct, frozen=True):
    """The circumstances of a failure.

    Attributes:
        now: when it was. end: when the total clock runs out. last_content: when content last came.
        emitted: the caller has content. answered: the response had begun.
        reused_connection: over a connection that had been idle.
    """

    now: float
    end: float
    last_content: float
    emitted: bool
    answered: bool
    reused_connection: bool


class Sequel(Struct, frozen=True):
    """Another attempt in `delay` seconds. `broke`: how it is to mend the break that this is; `silent`: not worth
    telling, since the server never saw the request."""

    delay: float
    broke: str | None = None
    silent: bool = False


class Sequels:
    """Decides on the failures of one stream."""

    def __init__(
        self, planner: AttemptPlanner, state: ClientState, fallback: Fallback, random: Callable[[], float]
    ) -> None:
        self._planner = planner
        self._state = state
        self._fallback = fallback
        self._random = random
        self._retries = 0
        self._loading_since: float | None = None

    def after(self, error: LlamaStreamError, at: FailedAt) -> Sequel | LlamaStreamError:
        """What follows; an error: that ends the stream."""
        if isinstance(error, MalformedOutputError):
            return error  # nothing broke: the model would say the same again
        if at.emitted:
            return self._in_the_middle(error, at)
        if self._falls_back(error, at.now):
            return Sequel(0.0)
        return self._retry(error, at) or error

    def _in_the_middle(self, error: LlamaStreamError, at: FailedAt) -> Sequel | LlamaStreamError:
        planner = self._planner
        broken = planner.broken
        if broken is not None and at.answered and not isinstance(error, ServerError):
            broken.fruitless += 1
        way = None if broken is None else broken.plan
        reported = planner.learn(error)
        kind = planner.after_break(reported, at.now, at.last_content)
        first, broken = broken is None, planner.broken
        assert broken is not None
        failure = classify(error, elsewhere=planner.elsewhere(at.now))
        base = self._state.retry.base_delay
        wait = delay(failure, broken.attempts, self._random(), base=base, longest=LONGEST_RECOVERY_DELAY)
        elsewhere = failure.elsewhere and kind != "reattach"
        if kind == "finish" or elsewhere or (reported is not error and kind != way):
            # Nothing is needed of a server, or one has not been asked yet, or one refused this way and is asked for
            # another.
            wait = 0.0
        if kind == "fail" or at.now + wait >= at.end:
            return reported
        broken.attempts += 1
        return Sequel(wait, broke=kind if first else None)

    def _falls_back(self, error: LlamaStreamError, now: float) -> bool:
        """Where the server says that it cannot stream, ask for the whole answer at once."""
        request = self._planner.request
        if self._fallback != "auto" or not request.body.get("stream") or not streaming_unsupported(error):
            return False
        self._planner.ask_for_whole(now)
        return True

    def _retry(self, error: LlamaStreamError, at: FailedAt) -> Sequel | None:
        state = RetryState(
            retries=self._retries,
            loading_since=self._loading_since,
            now=at.now,
            budget=0.0,  # the client's state fills it in
            reused_connection=at.reused_connection,
            answered=at.answered,
            emitted=False,
            elsewhere=self._planner.elsewhere(at.now),
        )
        retry = self._state.decide_retry(error, state, self._random())
        if retry is None or at.now + retry.delay >= at.end:
            if said := too_long(error, self._state.retry, at.end - at.now):
                error.message = f"{error.message}; {said}"
                error.args = (error.message,)
            return None
        if isinstance(error, ModelLoadingError) and self._loading_since is None:
            self._loading_since = at.now
        self._retries += retry.counts
        return Sequel(retry.delay, silent=not (retry.counts or retry.delay))
