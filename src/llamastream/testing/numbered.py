"""A llama-server double whose tokens are numbers, so that a lost or repeated one is visible at a glance.

with NumberedServer(tokens=20) as server:
    StreamingClient(server.url).complete([...])   # "0 1 2 3 … 19 "
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Struct

from llamastream.testing.framing import header_fields
from llamastream.testing.listener import Listener
from llamastream.testing.numbered_answers import (
    Answer,
    Body,
    RequestError,
    Style,
    plan_chat,
    plan_completion,
    template,
)
from llamastream.testing.numbered_generation import Follower, Generation, LeftError
from llamastream.testing.numbered_side import STREAM_HEAD, Vocabulary, error_of, lookup, props, slot_states
from llamastream.testing.numbered_writer import Writer
from llamastream.testing.wire import http_answer, is_complete, read_request

KEPT = "Keep-Alive: timeout=5, max=100"
PLANS: dict[str, Callable[[Body, Style, int], Answer]] = {
    "/v1/chat/completions": plan_chat,
    "/chat/completions": plan_chat,
    "/v1/completions": plan_completion,
    "/completions": plan_completion,
}


class ReceivedRequest(Struct, frozen=True):
    """A request that came.

    Attributes:
        path: without the query. headers: names in lower case. body: the parsed JSON, None without one.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None


class NumberedServer(Listener):
    """Token k of an answer is "k ": "0 1 2 3 … ". Listens on a free port of 127.0.0.1; `docs/fault_kit.md` has more.

    Attributes:
        url: its base URL. requests: what came, in order.
        generations: how many were begun. generating: how many run now. finished, cancelled: how many ended so.
    """

    def __init__(
        self,
        *,
        tokens: int = 50,
        reasoning_tokens: int = 0,
        tool_call: bool = False,
        delay: float = 0.0,
        gate: bool = False,
        slots: int = 4,
        context: int = 8192,
        reattach: bool = True,
        ring_bytes: int = 4 << 20,
        continues: bool = True,
        repeats_prefix: bool = False,
        diverge_at: int | None = None,
        loading: int = 0,
        port: int = 0,
    ) -> None:
        """Say how it answers.

        Args:
            tokens: numbers in an answer; a smaller `max_tokens` cuts it short, with finish reason "length".
            reasoning_tokens: so many tokens "r0 r1 … " come first, as `reasoning_content`.
            tool_call: answer with a call whose arguments are `{"n":[0,1,2…]}`, a number in each chunk.
            delay: seconds before each token. gate: each token waits for `release`.
            slots: so many generations run at once, further ones wait. context: the context size of each slot.
            reattach: know `X-Conversation-Id` and /v1/stream. ring_bytes: how much of a stream is kept for that.
            continues: continue a final assistant message; else `continue_final_message` is a 400.
            repeats_prefix: a continued stream begins with the whole message so far.
            diverge_at: from the second generation on, this token is another one.
            loading: so many requests are answered by 503 "Loading model" first.
        """
        super().__init__(port=port)
        self._style = Style(tokens, reasoning_tokens, tool_call, continues, repeats_prefix, diverge_at)
        self._delay = delay
        self._gated = gate
        self._permits = 0
        self._slots = slots
        self._context = context
        self._reattach = reattach
        self._ring = ring_bytes
        self._loading = loading
        self._live: list[Generation] = []
        self._conversations: dict[str, Generation] = {}
        self._vocabulary = Vocabulary()
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[ReceivedRequest] = []
        self.generations = 0
        self.finished = 0
        self.cancelled = 0

    @property
    def generating(self) -> int:
        with self.lock:
            return sum(generation.slot is not None for generation in self._live)

    def release(self, tokens: int | None = None) -> None:
        """Let so many tokens through the gate, for whichever generation comes first; None opens it for good."""
        with self.lock:
            self._gated = self._gated and tokens is not None
            self._permits += tokens or 0
            self.lock.notify_all()

    def close(self) -> None:
        """Go down as a killed server does: streams end in the middle, without a last chunk."""
        with self.lock:
            self.closing = True
            live = list(self._live)
        for generation in live:
            generation.cancel(abrupt=True)
        super().close()

    # -- HTTP -----------------------------------------------------------------------------------------------

    def serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        behind = bytearray()
        while is_complete(data := read_request(connection, behind)):
            try:
                status, payload = self._answer(data, connection)
            except RequestError as error:
                status, payload = 400, error_of(400, str(error))
            except LeftError:
                return
            if not status:
                return  # a stream, which closes its connection although it announces keep-alive
            kept = (
                status < 400 and header_fields(data.partition(b"\r\n\r\n")[0]).get("connection", "").lower() != "close"
            )
            reason = {200: "OK", 204: "No Content", 400: "Bad Request", 404: "Not Found"}.get(status, "Error")
            body = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
            kind = "application/json; charset=utf-8"
            connection.sendall(http_answer(f"{status} {reason}", body, kind, KEPT if kept else "Connection: close"))
            if not kept:
                return

    def _answer(self, data: bytes, connection: socket.socket) -> tuple[int, object]:
        """Status and body of the answer; status 0 if it has been given already."""
        head, _, raw = data.partition(b"\r\n\r\n")
        method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        try:
            body = msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError as error:
            return 500, error_of(500, str(error))
        request = ReceivedRequest(method, parts.path, query, header_fields(head), body)
        with self.lock:
            self.requests.append(request)
            loading, self._loading = self._loading > 0, max(0, self._loading - 1)
            self.lock.notify_all()
        if loading:
            return 503, error_of(503, "Loading model")
        if method == "POST" and parts.path in PLANS:
            return self._generate(request, connection)
        if parts.path == "/v1/stream" and self._reattach and method in ("GET", "DELETE"):
            return self._stream(request, connection)
        return self._side(request)

    def _side(self, request: ReceivedRequest) -> tuple[int, object]:
        body = request.body if isinstance(request.body, dict) else {}
        match request.method, request.path:
            case "GET", "/health" | "/v1/health":
                return 200, {"status": "ok"}
            case "GET", "/props":
                return 200, props(self._slots, self._context)
            case "GET", "/slots":
                with self.lock:
                    return 200, slot_states(self._slots, self._context, self._live)
            case "POST", "/tokenize":
                return 200, {"tokens": self._vocabulary.ids(body.get("content") or "")}
            case "POST", "/detokenize":
                return 200, {"content": self._vocabulary.text(body.get("tokens") or [])}
            case "POST", "/apply-template":
                return 200, {"prompt": template(body, self._style)}
            case "POST", "/v1/streams/lookup" if self._reattach:
                with self.lock:
                    return 200, lookup(body.get("conversation_ids") or [], self._conversations)
        return 404, error_of(404, "File Not Found")

    # -- generations ----------------------------------------------------------------------------------------

    def _generate(self, request: ReceivedRequest, connection: socket.socket) -> tuple[int, object]:
        body = request.body if isinstance(request.body, dict) else {}
        stream = bool(body.get("stream"))
        conversation = request.headers.get("x-conversation-id", "") if stream and self._reattach else ""
        with self.lock:
            answer = PLANS[request.path](body, self._style, self.generations + 1)
            self.generations += 1
            # The real server tells seconds; a second apart, two answers can always be told apart.
            writer = Writer(answer, secrets.token_hex(16), int(time.time()) + self.generations)
            generation = Generation(answer, writer, self.lock, stream=stream, survives=bool(conversation))
            self._live.append(generation)
            replaced = self._conversations.pop(conversation, None)
            if conversation:
                self._conversations[conversation] = generation
            self.lock.notify_all()
        if replaced:
            replaced.cancel()
        self.run(partial(self._run, generation))
        return self._follow(generation, request, connection)

    def _follow(
        self, generation: Generation, request: ReceivedRequest, connection: socket.socket, start: int = -1
    ) -> tuple[int, object]:
        """Send what a generation says; from byte `start` for a client that comes back."""
        closes = request.headers.get("connection", "").lower() == "close"
        head = f"{STREAM_HEAD}{'Connection: close' if closes else KEPT}\r\n\r\n".encode()
        try:
            with Follower(generation, connection) as follower:
                if generation.stream:
                    follower.send(head, max(0, start), head_first=start >= 0)
                    return 0, b""
                follower.wait_until_done()
        except OSError:
            if not generation.survives:
                generation.cancel()
            raise
        return (0, b"") if generation.cancelled else (200, generation.body)

    def _run(self, generation: Generation) -> None:
        pieces = generation.pieces()
        with self.lock:
            self.lock.wait_for(lambda: generation.cancelled or self._free_slots())
            if not generation.cancelled:
                generation.slot = self._free_slots()[0]
                self.lock.notify_all()
        for number in range(len(generation.answer.tokens) + 1):
            if number < len(generation.answer.tokens):
                self._pace(generation)
            if generation.cancelled:
                break
            next(pieces)
        with self.lock:
            generation.end()
            self._live.remove(generation)
            self.finished += not generation.cancelled
            self.cancelled += generation.cancelled
            self.lock.notify_all()

    def _free_slots(self) -> list[int]:
        taken = {generation.slot for generation in self._live}
        return [slot for slot in range(self._slots) if slot not in taken]

    def _pace(self, generation: Generation) -> None:
        """Wait until the next token may come."""
        with self.lock:
            self.lock.wait_for(lambda: generation.cancelled or not self._gated or self._permits)
            if self._gated and not generation.cancelled:
                self._permits -= 1
            if self._delay:
                self.lock.wait_for(lambda: generation.cancelled, self._delay)

    def _stream(self, request: ReceivedRequest, connection: socket.socket) -> tuple[int, object]:
        """GET and DELETE /v1/stream."""
        conversation = request.query.get("conv_id", "")
        if not conversation:
            return 400, error_of(400, "Missing conversation id in path")
        with self.lock:
            if request.method == "DELETE":
                generation = self._conversations.pop(conversation, None)
            else:
                generation = self._conversations.get(conversation)
        if request.method == "DELETE":
            if generation is not None:
                generation.cancel()
            return 204, b""
        start = request.query.get("from", "0")
        if generation is None:
            return 404, error_of(404, "File Not Found")
        if not start.isdecimal() or int(start) < len(generation.body) - self._ring:
            return 400, error_of(400, "Stream offset lost")
        return self._follow(generation, request, connection, int(start))
