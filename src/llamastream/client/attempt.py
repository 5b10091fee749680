"""One attempt to get an answer, and what is known of the generation behind it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from msgspec import Struct

from llamastream.client.endpoints import Call
from llamastream.client.servers import Server
from llamastream.errors import LlamaStreamError, MidStreamError, ServerError
from llamastream.policy.recovery import same_report
from llamastream.protocol.failures import reported
from llamastream.protocol.requests import GenerationRequest
from llamastream.protocol.resume import RepeatedAnswer, Resumed

AttemptKind: TypeAlias = Literal["first", "restart", "reattach", "continue", "replay", "non_streaming", "finish"]


_REFUSALS = frozenset({400, 404, 422, 500, 501})
"""How servers answer that cannot continue a begun message; a template that fails is a 500."""


class Count(Struct, frozen=True):
    """Tokens of the answer so far: how many were generated, how many they are when the server cuts the text anew, and
    their ids where they were asked for."""

    generated: int
    as_prompt: int
    ids: list[int] | None = None


class Generation:
    """What runs on a server on behalf of a stream, over however many connections it is read.

    Attributes:
        server: where. request: what was asked for. resumed: joins the answer to what the caller had before.
        conversation_id: under which the server holds it, or None.
        asked_for: the request has gone out, or may have. answered: the response has begun.
        offset: bytes of its body that have been taken, up to the last whole event.
        lost: it cannot be taken up again. refused: it was never begun.
        unrepeatable: it is sampled with a seed that we chose, so that no cache has to keep it.
    """

    __slots__ = (
        "answered",
        "asked_for",
        "conversation_id",
        "lost",
        "offset",
        "refused",
        "request",
        "resumed",
        "server",
        "unrepeatable",
    )

    def __init__(
        self, server: Server, request: GenerationRequest, resumed: Resumed | None, conversation_id: str | None
    ) -> None:
        self.server = server
        self.request = request
        self.resumed = resumed
        self.conversation_id = conversation_id
        self.asked_for = False
        self.answered = False
        self.offset = 0
        self.lost = False
        self.refused = False
        self.unrepeatable = False

    @property
    def held(self) -> bool:
        """Whether it may be taken up again."""
        return self.conversation_id is not None and not (self.lost or self.refused)

    @property
    def compared(self) -> bool:
        """Whether its answer repeats what the caller has, and is compared with it."""
        return isinstance(self.resumed, RepeatedAnswer)

    @property
    def reattach_path(self) -> str:
        """Where the rest of it is to be had."""
        return f"{stream_path(self.conversation_id or '')}&from={self.offset}"


def stream_path(conversation_id: str) -> str:
    """The path of a generation that a server holds."""
    return f"/v1/stream?conv_id={quote(conversation_id, safe='')}"


class Attempt(Struct, frozen=True):
    """What is sent, and to what end."""

    kind: AttemptKind
    generation: Generation


class Errand(Struct, frozen=True):
    """A short question to a server which has to be answered (or to fail) before the stream goes on.

    Attributes:
        server: whom to ask. call: what. timeout: seconds at most.
    """

    server: Server
    call: Call[Any]
    timeout: float


class Break:
    """A break in mid-stream that is not mended yet.

    Attributes:
        error: what happened first. at: when. silent_since: when the last content had come.
        characters: what the caller had. server: where it happened.
        tried: servers that failed since. attempts: how many there were since. plan: how the stream is to go on.
        fruitless: answers in a row that began and broke without new content.
        loading_since: when a server first said that it loads its model, or None.
    """

    __slots__ = (
        "at",
        "attempts",
        "characters",
        "error",
        "fruitless",
        "loading_since",
        "plan",
        "server",
        "silent_since",
        "tried",
    )

    def __init__(
        self, error: LlamaStreamError, at: float, silent_since: float, characters: int, server: Server
    ) -> None:
        self.error = error
        self.at = at
        self.silent_since = silent_since
        self.characters = characters
        self.server = server
        self.tried: set[Server] = set()
        self.attempts = 0
        self.fruitless = 0
        self.loading_since: float | None = None
        self.plan: AttemptKind = "restart"


class Reports:
    """The errors that servers reported inside of one stream.

    Attributes:
        same: how often in a row the last one came.
    """

    __slots__ = ("_last", "same")

    def __init__(self) -> None:
        self.same = 0
        self._last: tuple[str, int] | None = None

    def add(self, error: MidStreamError, characters: int) -> None:
        """One more. `characters`: what the caller had."""
        before, self._last = self._last, (reported(error.body), characters)
        self.same = self.same + 1 if before is not None and same_report(before, self._last) else 1


def refused(error: LlamaStreamError) -> bool:
    """Whether a server said no to a request, rather than failed at it."""
    return isinstance(error, ServerError) and not isinstance(error, MidStreamError) and error.status in _REFUSALS


def common_prefix(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
