"""Which attempt comes next: on which server, asking for what. Without I/O: questions to servers go out as errands.

`prepare` settles the next attempt. Either it is `ready` afterwards, or `errand` is set: then whoever runs the stream
asks, and tells the answer by `errand_done`, until it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from llamastream.client import endpoints
from llamastream.client.attempt import (
    Attempt,
    AttemptKind,
    Break,
    Count,
    Errand,
    Generation,
    Reports,
    common_prefix,
    refused,
)
from llamastream.client.servers import PROBE_TIMEOUT, Server
from llamastream.client.state import ClientState
from llamastream.client.whole import WholeOnly
from llamastream.errors import (
    BadRequestError,
    EventTooLargeError,
    LlamaStreamError,
    MalformedOutputError,
    MidStreamError,
    ModelLoadingError,
    ProtocolError,
    ServerError,
    StreamDivergedError,
    ToolsUnsupportedError,
)
from llamastream.policy.recovery import Case, PlanKind, RecoveryOptions, classify, plan
from llamastream.protocol.journal import Journal, repetition, token_limit, with_seed
from llamastream.protocol.requests import CHAT_PATH, GenerationRequest
from llamastream.protocol.resume import Resumed
from llamastream.types import Capabilities, Health

COUNT_TIMEOUT = 2.0
"""Seconds that a server may take to count tokens."""

_NOT_OF_THE_PROMPT = frozenset({"messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"})

_PASSING = frozenset({429, 502, 503, 504})
"""How something on the way answers for a while; the server may hold the generation all the same."""

_LOST = frozenset({502, 504})
"""How something on the way answers that has lost sight of the server, which may have begun a generation."""

Script = Generator[Errand, Any, None]


class AttemptPlanner:
    """Plans the attempts of one stream.

    Attributes:
        journal: what the caller has. request: what is asked for, from the beginning.
        attempt: the attempt that is ready, or under way. generation: what runs on a server, or ran last.
        broken: the break that is to be mended, or None.
        errand: a question to be asked before the attempt. ready: the attempt may begin.
        complete: (prompt tokens, tokens), None where not known, if all of the answer turned out to be there.
    """

    def __init__(
        self,
        request: GenerationRequest,
        recovery: RecoveryOptions,
        state: ClientState,
        random: Callable[[], float],
        whole_only: WholeOnly | None = None,
        prefer: Server | None = None,
    ) -> None:
        """`prefer`: the server of the first attempt."""
        seeded = request
        if recovery.mode == "full" and repetition(request) != "no":
            seeded = with_seed(request, int(random() * 2**31))
        self._unrepeatable = seeded is not request and request.body.get("temperature") != 0
        request = seeded
        self._whole_only = whole_only
        self._prefer = prefer
        self.journal = Journal(request)
        self.request = request
        self.attempt: Attempt | None = None
        self.generation: Generation | None = None
        self.broken: Break | None = None
        self.errand: Errand | None = None
        self.ready = False
        self.complete: tuple[int | None, int | None] | None = None
        self._recovery = recovery
        self._state = state
        self._servers = state.servers
        self._reports = Reports()
        self._failed_on: set[Server] = set()
        self._refused_by: set[Server] = set()  # servers that would not continue this answer
        self._script: Script | None = None
        self._mended = 0
        self._now = 0.0
        self._decode_ms = 0.0
        self._busy: tuple[Server, int] | None = None

    @property
    def server(self) -> Server:
        """The server of the attempt; before the first, the one that is listed first."""
        return self.attempt.generation.server if self.attempt is not None else self._servers.all[0]

    @property
    def wants_slot(self) -> bool:
        """The next attempt begins a generation, since the server of the one before failed it."""
        if self.ready or self._script is not None or self.attempt is None:
            return False
        if self.broken is not None:
            return self.broken.plan not in ("reattach", "finish")
        return self.server in self._failed_on

    def go_to(self, server: Server | None, waited: float) -> None:
        """The next attempt goes there, after so many seconds in line, which are not the server's fault."""
        self._prefer = server
        if self.broken is not None:
            self.broken.at += waited

    def _repeats(self, server: Server) -> bool:
        """Whether a broken answer is repeated and compared, rather than continued."""
        first = self.journal.repeat == "first" and not self.journal.diverged
        return first or self.journal.repeat == "only" or self._cannot_continue(server)

    def _cannot_continue(self, server: Server) -> bool:
        return server.continues is False or server in self._refused_by

    # -- before an attempt --------------------------------------------------------------------------------

    def prepare(self, now: float, decode_ms: float) -> None:
        """Settle the next attempt. `decode_ms`: for how long content has come so far."""
        if self._script is None and not self.ready:
            self._now, self._decode_ms = now, decode_ms
            self._script = self._settle()
            self._advance(None)

    def errand_done(self, answer: Any, now: float) -> None:
        """What came of the errand; None: it failed."""
        self._now = now
        self._advance(answer)

    def _advance(self, answer: Any) -> None:
        assert self._script is not None
        try:
            self.errand = self._script.send(answer)
        except StopIteration:
            self.errand = self._script = None
            self.ready = True

    def _settle(self) -> Script:
        broken, generation = self.broken, self.generation
        kind: AttemptKind = "first" if self.attempt is None else "restart" if broken is None else broken.plan
        if kind == "reattach" and generation is not None:
            self.attempt = Attempt("reattach", generation)
            return
        held_once = generation is not None and generation.conversation_id is not None and generation.lost
        if generation is not None and held_once and generation.server.reattach is None:
            generation.server.reattach = yield Errand(generation.server, endpoints.reattach_probe(), PROBE_TIMEOUT)
        server = yield from self._choose()
        self.abandon()
        request: GenerationRequest = self.request
        resumed: Resumed | None = None
        whole = kind == "non_streaming"
        if kind == "finish":
            yield from self._count_all(server)
            return
        repeat = kind == "replay" or (whole and self._repeats(server))
        if kind == "continue" or (whole and not repeat):
            count = yield from self._count(server)
            # A prompt of token ids can be continued with token ids only.
            repeat = count.ids is None and isinstance(request.body.get("prompt"), list)
        if repeat:
            request, compared = self.journal.repeated(whole=whole)
            resumed, kind = compared, "non_streaming" if whole else "replay"
        elif kind == "continue" or whole:
            limit = token_limit(request)
            pieces = self.journal.assembler.content_chunks
            if limit is not None and pieces >= limit:  # each is a token at least; a count of the text may be too high
                self.complete = (yield from self._count_prompt(server)), limit
                return
            request, resumed = self.journal.continued(
                tokens=count.generated if limit is None else min(count.generated, limit - 1),
                as_prompt=count.as_prompt,
                decode_ms=self._decode_ms,
                prompt_tokens=count.ids,
                whole=whole,
            )
        elif kind == "restart":
            self.journal.restart()
        if kind in ("first", "restart") and self._whole_only and self._whole_only.applies(server, request, self._now):
            request = request.without_stream()
        self.generation = Generation(server, request, resumed, self._conversation_id(server, request))
        self.generation.unrepeatable = self._unrepeatable
        self.attempt = Attempt(kind, self.generation)

    def _choose(self) -> Generator[Errand, Any, Server]:
        failed = set(self._failed_on) if self.broken is None else self.broken.tried
        for _ in range(len(self._servers)):
            prefer, self._prefer = self._prefer, None  # for one attempt alone
            server, probe = self._servers.choose(self._now, failed, prefer)
            if not probe:
                return server
            health: Health | None = yield Errand(server, endpoints.health(), PROBE_TIMEOUT)
            if health is not None and health.ok:
                return server
            self._servers.failed(server, self._now, certain=True)
        return self._servers.choose(self._now, failed)[0]

    def _conversation_id(self, server: Server, request: GenerationRequest) -> str | None:
        """Only where the generation ends by itself: one that nobody reads has no other limit."""
        wanted = self._recovery.mode != "off" and server.reattach is not False and request.body.get("stream")
        return self._state.new_conversation_id() if wanted and token_limit(request) is not None else None

    def _count(self, server: Server) -> Generator[Errand, Any, Count]:
        """How many tokens the caller has, and, for a prompt of token ids, which.

        A conversation is counted with its template, since marks around reasoning are tokens that no text shows. Pieces
        are at least one token each; where the server does not count, they are what we know.
        """
        journal = self.journal
        pieces = journal.assembler.content_chunks
        if self.request.path != CHAT_PATH:
            ids = yield Errand(server, endpoints.tokenize(journal.text, False, False), COUNT_TIMEOUT)
            return Count(max(pieces, len(ids or ())), pieces if ids is None else len(ids), ids)
        body = self.request.body
        extra = {key: value for key, value in body.items() if key not in _NOT_OF_THE_PROMPT}
        before = yield Errand(server, endpoints.apply_template(body["messages"], extra), COUNT_TIMEOUT)
        extra.update(continue_final_message=True, add_generation_prompt=False)
        after = None
        if before is not None:
            after = yield Errand(server, endpoints.apply_template(journal.begun_message(), extra), COUNT_TIMEOUT)
        if before is None or after is None:
            return Count(pieces, pieces)
        same = common_prefix(before, after)
        count = 0
        for text, sign in ((after[same:], 1), (before[same:], -1)):
            if text:
                ids = yield Errand(server, endpoints.tokenize(text, False, True), COUNT_TIMEOUT)
                if ids is None:
                    return Count(pieces, pieces)
                count += sign * len(ids)
        return Count(max(pieces, count), count)

    def _count_all(self, server: Server) -> Script:
        """The answer is finished, but its token counts were lost."""
        if self.journal.counted or self._recovery.mode == "off":
            self.complete = (None, None)
            return
        shown = yield from self._count(server)
        tokens = self.journal.generated_tokens(shown.generated)
        self.complete = (None if tokens is None else (yield from self._count_prompt(server))), tokens

    def _count_prompt(self, server: Server) -> Generator[Errand, Any, int | None]:
        body = self.request.body
        prompt: Any = body.get("prompt")
        if self.request.path == CHAT_PATH:
            extra = {key: value for key, value in body.items() if key not in _NOT_OF_THE_PROMPT}
            prompt = yield Errand(server, endpoints.apply_template(body["messages"], extra), COUNT_TIMEOUT)
        if isinstance(prompt, str):
            prompt = yield Errand(server, endpoints.tokenize(prompt, True, True), COUNT_TIMEOUT)
        return len(prompt) if isinstance(prompt, list) else None

    # -- an attempt ---------------------------------------------------------------------------------------

    def begin(self) -> Attempt:
        """The attempt begins."""
        assert self.attempt is not None
        self.ready = False
        self._busy = self.server, self._servers.began(self.server)
        return self.attempt

    def sent(self) -> None:
        """The request is about to go out: from now on the server may hold the generation."""
        assert self.attempt is not None
        generation = self.attempt.generation
        if not generation.asked_for and generation.conversation_id is not None:
            self._state.hold(generation.server, generation.conversation_id)
        generation.asked_for = True

    def ended(self, *, answered: bool) -> None:
        """The attempt is over, well or not. `answered`: the response had begun."""
        if self._busy is not None:
            self._servers.ended(*self._busy)
            self._busy = None
            if self.generation is not None and answered:
                self.generation.answered = True

    def abandon(self) -> None:
        """Nobody wants the generation any more: have the server drop it, if it holds it."""
        generation, self.generation = self.generation, None
        if generation is not None and generation.conversation_id is not None and generation.asked_for:
            self._state.let_go(generation.server, generation.conversation_id, begun=generation.answered)

    def ask_for_whole(self, now: float) -> None:
        """The server cannot stream: the next attempt asks for the whole answer, and so do other requests like this."""
        if self._whole_only is not None:
            self._whole_only.refused(self.server, self.request, now)
        self.request = self.request.without_stream()

    # -- after a failure ----------------------------------------------------------------------------------

    def blame(self, error: LlamaStreamError, now: float, *, stale: bool) -> None:
        """Note against the server that an attempt failed. `stale`: over an idle connection that had been closed."""
        if isinstance(error, MalformedOutputError):
            return  # it is the model's
        failure = classify(error, elsewhere=False)
        # With others to ask, an answer that says more of the server than of the request counts against it as well.
        unfit = len(self._servers) > 1 and (self.broken is not None or not isinstance(error, BadRequestError))
        unfit = unfit and isinstance(error, ServerError | ProtocolError) and not isinstance(error, EventTooLargeError)
        if stale or not (unfit or failure.kind in ("cut", "stall", "refused", "unavailable")):
            return
        certain = failure.kind in ("stall", "refused") or (unfit and failure.kind in ("final", "server_error"))
        if not isinstance(error, ToolsUnsupportedError):  # the server is well for all other requests
            self._servers.failed(self.server, now, certain=certain)
        self._failed_on.add(self.server)
        if self.broken is not None:
            self.broken.tried.add(self.server)

    def elsewhere(self, now: float) -> bool:
        """Whether a server is left that has not failed since the break."""
        tried = self._failed_on if self.broken is None else self.broken.tried
        return len(self._servers) > 1 and self._servers.elsewhere(now, {self.server, *tried})

    def learn(self, error: LlamaStreamError) -> LlamaStreamError:
        """What a failed way back tells of the server; returns the error that is to be decided on."""
        attempt, broken = self.attempt, self.broken
        if isinstance(error, StreamDivergedError):
            self.journal.diverged = True
        if isinstance(error, MidStreamError) and attempt is not None and attempt.kind != "reattach":
            self._reports.add(error, self.journal.characters)  # not what a generation that failed says once more
        if attempt is None or broken is None:
            return error
        generation = attempt.generation
        if attempt.kind == "reattach":
            unknown = isinstance(error, ServerError) and error.status not in _PASSING
            if unknown or broken.attempts > 1:
                generation.lost = True
                return broken.error if unknown else error
            if classify(error, elsewhere=False).kind == "refused":
                generation.lost = True  # it went down with its process
        elif isinstance(error, ServerError) and not isinstance(error, MidStreamError) and error.status not in _LOST:
            generation.refused = True
        if attempt.kind in ("continue", "non_streaming") and not generation.compared and refused(error):
            # Of this stream alone: what refuses one message, or fails at a moment, may take the next.
            self._refused_by.add(generation.server)
            return broken.error
        if self.server is not broken.server and isinstance(error, ServerError | ProtocolError):
            return broken.error  # that server is no way back; what broke before is still to be mended
        return error

    def after_break(self, error: LlamaStreamError, now: float, silent_since: float) -> PlanKind:
        """How a stream of which the caller has a part, or all, goes on. `silent_since`: when content last came."""
        assert self.attempt is not None
        if self.broken is None:
            self.broken = Break(error, now, silent_since, self.journal.characters, self.server)
            self.broken.tried = {self.server} if self.server in self._failed_on else set()
        broken, generation = self.broken, self.attempt.generation
        if isinstance(error, ModelLoadingError):
            broken.loading_since = now if broken.loading_since is None else broken.loading_since
            if now - broken.loading_since < self._state.retry.loading_patience:
                broken.at = now  # it is coming up: patience begins anew
        case = Case(
            self.journal.state(
                held=generation.held,
                fruitless=broken.fruitless,
                seconds=now - broken.at,
                recoveries=self._mended,
                reported=self._reports.same if isinstance(error, MidStreamError) else 0,
            ),
            classify(error, elsewhere=self.elsewhere(now)),
            Capabilities(
                reattach=generation.server.reattach,
                continues=False if self._cannot_continue(generation.server) else generation.server.continues,
            ),
            self._recovery,
        )
        kind = plan(case)
        if kind != "fail":
            broken.plan = kind
        return kind

    def mended(self) -> Break | None:
        """Content came: the break is behind us."""
        broken, self.broken = self.broken, None
        self._mended += 1
        self._failed_on.clear()
        return broken
