"""The endpoints for clients that come back to a stream: as llama-server has them, and apart for each API key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from llamastream.gateway.broadcast import Broadcast
from llamastream.gateway.refusals import refusal, respond
from llamastream.gateway.served import served_of

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway


class Reattach:
    """`/v1/stream` and `/v1/streams/lookup`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._held = gateway.sharing.held

    async def stream(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /v1/stream?conv_id=ID&from=BYTES`: the rest of a stream. `DELETE`: nobody wants it any more."""
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        id_ = asked.get("conv_id", [""])[0]
        owner = served_of(scope).owner
        if not id_:
            await self._refuse(scope, send, 400, "name the stream: /v1/stream?conv_id=ID")
        elif scope["method"] == "DELETE":
            self._held.drop(owner, id_)
            # The same whether there was one: what belongs to others does not exist.
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._read(scope, receive, send, owner, id_, asked.get("from", ["0"])[0])

    async def _read(self, scope: dict[str, Any], receive: Any, send: Any, owner: str, id_: str, start: str) -> None:
        held = self._held.find(owner, id_)
        if not (start.isascii() and start.isdigit() and len(start) < 19):
            await self._refuse(scope, send, 400, f"from = {start[:50]!r} is not allowed; allowed: a number of bytes")
        elif held is None:
            await self._refuse(scope, send, 404, "there is no such stream, or it is over for too long")
        elif wrong := _not_there(held.broadcast, int(start)):
            await self._refuse(scope, send, *wrong)
        elif scope["method"] == "HEAD":
            await respond(send, 200, b"", content_type=b"text/event-stream")
        else:
            self._held.reattached += 1
            await self._gateway.sharing.read(held, int(start), scope, receive, send)

    async def lookup(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`POST /v1/streams/lookup`: which of these ids there are, and how far they are."""
        raw = await self._gateway.bodies.read(scope, receive)
        try:
            ids = msgspec.json.decode(raw, type=_Asked).conversation_ids
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f'the request\'s body is not {{"conversation_ids": ["ID", ...]}}: {error}'
            await self._refuse(scope, send, 400, message)
            return
        found = self._held.lookup(served_of(scope).owner, set(ids) - {""})
        await respond(send, 200, msgspec.json.encode(found))

    @staticmethod
    async def _refuse(scope: dict[str, Any], send: Any, status: int, message: str) -> None:
        await respond(send, status, refusal(scope["path"], status, message))


def _not_there(broadcast: Broadcast, start: int) -> tuple[int, str] | None:
    """Status and message, where an answer has nothing from this byte on, and never will."""
    if start < broadcast.dropped:
        return 400, f"from = {start} is lost: only what follows byte {broadcast.dropped} is kept (replay_bytes)"
    if start > broadcast.end and broadcast.status in (0, 200):  # an error is told from its beginning
        return 416, f"from = {start} is beyond the end: there are {broadcast.end} bytes so far, count those you have"
    return None


class _Asked(msgspec.Struct):
    conversation_ids: list[str] = []
