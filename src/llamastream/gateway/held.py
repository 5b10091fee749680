"""Streams that are kept for clients which lost their connection, under the ids that these gave them.

Each API key has ids of its own: what belongs to another key does not exist. llama-server never learns the ids: there
the gateway uses its own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from llamastream.gateway.broadcast import Broadcast, OffsetLostError, Reader
from llamastream.gateway.settings import GatewaySettings

LONGEST_ID = 256
"""Characters of an id."""


class Held:
    """A stream under an id: `broadcast`, and those who read it by this id."""

    __slots__ = ("broadcast", "completed", "id", "owner", "readers", "started", "timer")

    def __init__(self, owner: str, id: str, broadcast: Broadcast) -> None:  # noqa: A002  # that is its name everywhere
        self.owner = owner
        self.id = id
        self.broadcast = broadcast
        self.readers: set[Reader] = set()
        self.started = int(time.time())
        self.completed = 0
        self.timer: asyncio.TimerHandle | None = None

    def described(self) -> dict[str, Any]:
        """As llama-server describes it."""
        return {
            "conversation_id": self.id,
            "is_done": self.broadcast.ended,
            "total_bytes": self.broadcast.end,
            "started_at": self.started,
            "completed_at": self.completed,
        }


class HeldStreams:
    """All of them, within bounds of memory and time. Belongs to one event loop.

    Attributes:
        used: bytes that answers take, also those that nobody holds. reattached: how many clients came back.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.used = 0
        self.reattached = 0
        self._settings = settings
        self._held: dict[tuple[str, str], Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def detached(self) -> int:
        """Streams that go on while nobody reads them."""
        return sum(not held.broadcast.ended and not held.broadcast.readers for held in self._held.values())

    def new(self, path: str, size: int = 0) -> Broadcast:
        """An answer that counts in the bound on memory, and will be kept whole up to this size in any case."""
        return Broadcast(path, max(size, self._settings.replay_bytes), self._account)

    def hold(self, owner: str, id: str, broadcast: Broadcast) -> Held:  # noqa: A002  # that is its name everywhere
        """Keep it under this id; what was there is dropped."""
        self.drop(owner, id)
        held = self._held[owner, id] = Held(owner, id, broadcast)
        broadcast.holds += 1
        if broadcast.ended:
            self._completed(held)
        else:
            broadcast.on_end.append(lambda _: self._completed(held))
        return held

    def find(self, owner: str, id: str) -> Held | None:  # noqa: A002  # that is its name everywhere
        """The stream of this key under this id."""
        return self._held.get((owner, id))

    def lookup(self, owner: str, ids: set[str]) -> list[dict[str, Any]]:
        """What there is of these ids, and, as llama-server has it, under `ID::anything`."""
        return [
            held.described()
            for (whose, id_), held in self._held.items()
            if whose == owner and (id_ in ids or any(id_[:cut] in ids for cut in _separators(id_)))
        ]

    def attach(self, held: Held, offset: int = 0) -> Reader:
        """Somebody will read it.

        Raises:
            OffsetLostError: what they want is gone.
        """
        reader = held.broadcast.attach(offset)
        held.readers.add(reader)
        if not held.broadcast.ended:
            self._stop_timer(held)
        return reader

    def left(self, held: Held, reader: Reader) -> None:
        """They read no more. The last one's return is waited for."""
        held.readers.discard(reader)
        if not held.readers and not held.broadcast.ended and self._held.get((held.owner, held.id)) is held:
            self._start_timer(held, self._settings.detach_grace)

    def drop(self, owner: str, id: str) -> None:  # noqa: A002  # that is its name everywhere
        """Forget it, end it if nobody else wants it, and those who read it by this id."""
        held = self._held.pop((owner, id), None)
        if held is None:
            return
        self._stop_timer(held)
        for reader in tuple(held.readers):
            held.broadcast.detach(reader)
        held.broadcast.release()

    def close(self) -> None:
        """Forget all."""
        for owner, id_ in tuple(self._held):
            self.drop(owner, id_)

    # -- time -----------------------------------------------------------------------------------------------------

    def _completed(self, held: Held) -> None:
        held.completed = int(time.time())
        if self._held.get((held.owner, held.id)) is held:
            self._start_timer(held, self._settings.replay_ttl)

    def _start_timer(self, held: Held, seconds: float) -> None:
        self._stop_timer(held)
        held.timer = asyncio.get_running_loop().call_later(seconds, self._expire, held)

    @staticmethod
    def _stop_timer(held: Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None

    def _expire(self, held: Held) -> None:
        if self._held.get((held.owner, held.id)) is not held:
            return
        if held.readers:  # somebody still reads the end of it; nobody else may begin to
            del self._held[held.owner, held.id]
            held.broadcast.release()
        else:
            self.drop(held.owner, held.id)

    # -- memory ---------------------------------------------------------------------------------------------------

    def _account(self, size: int) -> None:
        self.used += size
        if size > 0 and self.used > self._settings.replay_memory:
            self._shrink()

    def _shrink(self) -> None:
        """First what has ended goes, the oldest first; then the beginnings of those that run, the largest first."""
        limit = self._settings.replay_memory
        for held in sorted(self._held.values(), key=lambda held: held.completed):
            if self.used <= limit:
                return
            if held.broadcast.ended and not held.readers:
                self.drop(held.owner, held.id)
        for held in sorted(self._held.values(), key=lambda held: len(held.broadcast.body), reverse=True):
            if self.used <= limit:
                return
            held.broadcast.trim(0)


def refused_id(id: str) -> str:  # noqa: A002  # that is its name everywhere
    """Why this cannot be an id, or "". Bytes that are no UTF-8 are in it as surrogates: no query could name it."""
    if len(id) > LONGEST_ID:
        return f"X-Conversation-Id: more than {LONGEST_ID} characters are not allowed"
    if any("\ud800" <= character <= "\udfff" for character in id):
        return "X-Conversation-Id is not UTF-8: use that, or letters, digits and signs of ASCII"
    return ""


def _separators(text: str) -> list[int]:
    return [cut for cut in range(len(text)) if text.startswith("::", cut)]


__all__ = ["LONGEST_ID", "Held", "HeldStreams", "OffsetLostError", "refused_id"]
