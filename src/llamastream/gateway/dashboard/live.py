"""The state of the dashboard second by second, and those who watch it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from llamastream.gateway.dashboard.facts import Reader
from llamastream.observe.dashboard import Board

logger = logging.getLogger("llamastream.gateway")

TICK = 1.0
COALESCE = 0.2
"""Seconds for which what comes at the same time is gathered, before it is shown: servers become busy and free often."""
FIRST_LINES, MORE_LINES = 400, 300
"""Lines of logs that a page gets at its beginning, and at most at once after that."""

_encode = msgspec.json.Encoder().encode


class Viewer:
    """One page that watches. `news`: there is something for it. It reads at its own pace, and nothing waits for it:
    what it was too slow for is counted as missing, and of states it gets the last one."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.news = asyncio.Event()
        self._state = live.turn
        self._logs = self._troubles = 0

    def first(self, about: dict[str, Any]) -> bytes:
        """The event with which it begins: everything."""
        board = self._live.board
        logs, _, self._logs = board.logs.since(0, FIRST_LINES)
        troubles, _, self._troubles = board.troubles.since(0, FIRST_LINES)
        history = {"fine": board.history.fine.series(), "coarse": board.history.coarse.series()}
        everything = {**about, "history": history, "state": self._live.state, "logs": logs, "troubles": troubles}
        return _event("hello", everything)

    def more(self) -> bytes:
        """What is new since the last time."""
        self.news.clear()
        live, found = self._live, b""
        if self._state != live.turn:
            self._state = live.turn
            found += live.encoded()
        for name in ("troubles", "logs"):
            tail = getattr(live.board, name)
            seen = getattr(self, f"_{name}")
            if tail.last != seen:
                lines, missing, last = tail.since(seen, MORE_LINES)
                setattr(self, f"_{name}", last)
                found += _event(name, {"lines": lines, "missing": missing})
        return found


class Live:
    """Reads the facts each second, and at once after a change. Belongs to one event loop; `poke` is for all threads.

    Attributes:
        state: how everything was at the last look. turn: its number. viewers: those who watch.
    """

    def __init__(self, board: Board, reader: Reader) -> None:
        self.board = board
        self.state: dict[str, Any] = {}
        self.turn = 0
        self.viewers: set[Viewer] = set()
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lines = False
        self._encoded: tuple[int, bytes] | None = None
        board.on_news = self._told

    def encoded(self) -> bytes:
        """The state as an event; made once for all who watch."""
        if self._encoded is None or self._encoded[0] != self.turn:
            self._encoded = (self.turn, _event("state", self.state))
        return self._encoded[1]

    def poke(self) -> None:
        """Something changed with the servers."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._changed.set)

    def _told(self) -> None:
        """There are new lines: say so soon, once for all that come meanwhile."""
        if self.viewers and not self._lines:
            self._lines = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.call_later, COALESCE, self._show_lines)

    def _show_lines(self) -> None:
        self._lines = False
        self._wake()

    def _wake(self) -> None:
        for viewer in self.viewers:
            viewer.news.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        at = self._loop.time()
        while True:
            try:
                await self._look(point=True)
                at = max(at + TICK, self._loop.time())
                await self._changes_until(at)
            except Exception:
                logger.exception("the dashboard's look at the servers failed")
                await asyncio.sleep(TICK)

    async def _changes_until(self, at: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(at):
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if self.viewers:
                        await self._look(point=False)  # at once: some states are short
                    await asyncio.sleep(COALESCE)

    async def _look(self, *, point: bool) -> None:
        facts = await self._reader.read()
        self.state = self.board.look(facts, point=point)
        self.turn += 1
        self._wake()


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode(data) + b"\n\n"
