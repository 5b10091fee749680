"""Answers on disk: one SQLite file, within a bound, behind a thread of its own. Whatever fails here costs an entry and
a warning, never a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from llamastream.errors import SettingError
from llamastream.gateway.answers import Answer

logger = logging.getLogger("llamastream.gateway")

NAME = "answers.sqlite3"
VERSION = 1
PAGE = 4096
BUSY = 2.0
"""Seconds for which another process (a second gateway on the same directory) may hold the file."""
TOUCH = 60.0
"""Seconds after which another use of an entry is written down."""
FILL = 0.8
"""The share of the file's bound that bodies may take: the rest is for the tables around them."""
MAX_PENDING = 64
"""Answers that may wait to be written; more are not, where the disk is so slow."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, stream INTEGER NOT NULL, tokens INTEGER NOT NULL, stored REAL NOT NULL, used REAL NOT NULL,
    size INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON answers (used, size);
CREATE INDEX IF NOT EXISTS by_age ON answers (stored);
"""

T = TypeVar("T")


class AnswerFile:
    """The file. Its methods are for the event loop; what takes time happens in the thread.

    Attributes:
        entries, used: how many there are, and bytes of their bodies, as of the last time that something was written.
        errors: how often something failed. path: of the file.
    """

    def __init__(self, directory: str, limit: int, ttl: float) -> None:
        """Nothing is opened yet. `limit`: bytes of the file. `ttl`: seconds for which an answer is good.

        Raises:
            SettingError: the directory cannot be made, or written to.
        """
        self.path = Path(directory).expanduser() / NAME
        self.entries = 0
        self.used = 0
        self.errors = 0
        self._limit = limit
        self._ttl = ttl
        self._pending = 0
        self._database: sqlite3.Connection | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "llamastream-cache")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._create()
        except OSError as error:
            raise SettingError(f"response_cache_dir = {directory!r} cannot be used: {error}") from None

    def _create(self) -> None:
        """Ours alone from the first moment; SQLite gives what it puts beside it the same mode."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)

    async def get(self, key: bytes) -> Answer | None:
        """What there is under this key, and is not too old."""
        return await self._do(lambda: self._get(key))

    def put(self, key: bytes, answer: Answer) -> None:
        """Have it written, soon."""
        if self._closed or self._pending >= MAX_PENDING:
            return
        self._pending += 1
        self._thread.submit(self._safely, lambda: self._put(key, answer), self._written)

    def _written(self) -> None:
        self._pending -= 1

    async def open(self) -> None:
        """Open it now, rather than with the first request."""
        await self._do(self._count)

    async def close(self) -> None:
        """Write what is to be written, and close it."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._safely, self._close)
            self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T | None:
        if self._closed:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._safely, work)

    # -- in the thread ------------------------------------------------------------------------------------------

    def _safely(self, work: Callable[[], T], then: Callable[[], None] = lambda: None) -> T | None:
        try:
            return self._patiently(work)
        except (sqlite3.Error, OSError, zlib.error, MemoryError) as error:
            self._failed(error)
            return None
        finally:
            then()

    @staticmethod
    def _patiently(work: Callable[[], T]) -> T:
        """SQLite waits by itself for others who use the file, but not where two open it at the same time."""
        end = time.monotonic() + BUSY
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not busy or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError | sqlite3.IntegrityError
        )
        if self.errors == 1:
            what = "is damaged, is thrown away, and begins anew" if broken else "fails, and goes on without this answer"
            logger.warning("the response cache in %s %s: %s", self.path, what, error)
        with contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                self._database.rollback()
        if broken:  # not a database, or a damaged one: it is a cache, so it begins anew
            self._close()
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    Path(f"{self.path}{end}").unlink()

    def _open(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        self._create()
        database = sqlite3.connect(self.path, timeout=BUSY, check_same_thread=False, isolation_level=None)
        try:
            # A bound that holds whatever is counted wrongly.
            database.execute(f"PRAGMA page_size={PAGE}")
            database.execute("PRAGMA auto_vacuum=FULL")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(f"PRAGMA journal_size_limit={4 << 20}")
            database.execute(f"PRAGMA max_page_count={max(16, self._limit // PAGE)}")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                database.execute("DROP TABLE IF EXISTS answers")
                database.execute(f"PRAGMA user_version={VERSION}")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _get(self, key: bytes) -> Answer | None:
        database, now = self._open(), time.time()
        row = database.execute(
            "SELECT stream, tokens, stored, used, body FROM answers WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        stream, tokens, stored, used, body = row
        if now - stored > self._ttl:
            return None
        try:
            answer = Answer(bool(stream), zlib.decompress(body), tokens, stored)  # checks its sum as well
        except zlib.error:
            database.execute("DELETE FROM answers WHERE key = ?", (key,))
            raise
        if now - used > TOUCH:
            with contextlib.suppress(sqlite3.OperationalError):  # full, or held by another: it is read all the same
                database.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
        return answer

    def _put(self, key: bytes, answer: Answer) -> None:
        database, body = self._open(), zlib.compress(answer.body, 1)
        if len(body) > self._limit // 8:
            return
        self._make_room(len(body))
        database.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, answer.stream, answer.tokens, answer.stored, time.time(), len(body), body),
        )
        self._count()

    def _make_room(self, size: int) -> None:
        database = self._open()
        database.execute("DELETE FROM answers WHERE stored < ?", (time.time() - self._ttl,))
        self._count()
        over = self.used + size - int(self._limit * FILL)
        if over <= 0:
            return
        gone = []
        for key, length in database.execute("SELECT key, size FROM answers ORDER BY used"):
            gone.append((key,))
            over -= length + PAGE // 4
            if over <= 0:
                break
        database.executemany("DELETE FROM answers WHERE key = ?", gone)

    def _count(self) -> None:
        row = self._open().execute("SELECT count(*), total(size) FROM answers").fetchone()
        self.entries, self.used = row[0], int(row[1]) + row[0] * (PAGE // 4)
