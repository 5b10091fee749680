"""Which generations servers hold for this process, on disk: whoever comes after a crash can have them dropped.

One file for each process, locked as long as it lives, in the user's state directory; a line for each generation. A
process that ends in order leaves no file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from llamastream.settings.file import user_directory

try:
    import fcntl
except ImportError:  # not on Windows; there nothing is written down
    fcntl = None  # type: ignore[assignment]

MAX_AGE = 86400.0
"""Seconds after which a dead process's file is thrown away: no server holds anything for so long."""

MAX_FILE_BYTES = 1 << 20
"""So much of a dead process's file is read."""

MAX_HELD = 4096
"""Generations that are kept in mind; of more, the oldest are forgotten."""

MAX_LINES = 1024
"""A file with more lines than this, most of them of what is not held any more, is written anew."""


class _Line(Struct, omit_defaults=True):
    """`url` and `id`: a server holds this. `id` alone: no longer."""

    id: str
    url: str = ""


def state_directory() -> Path:
    """Where the files are: under XDG_STATE_HOME, else ~/.local/state."""
    return user_directory("XDG_STATE_HOME", ".local/state") / "held"


class Ledger:
    """The file of this process. Thread-safe; a forked child has a file of its own. Never raises for the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._held: dict[str, str] = {}  # id: url
        self._lines = 0

    def add(self, url: str, conversation_id: str) -> None:
        """A server is about to hold a generation."""
        with self._lock:
            if len(self._held) >= MAX_HELD:
                del self._held[next(iter(self._held))]
            self._held[conversation_id] = url
            self._write(_Line(conversation_id, url))

    def remove(self, conversation_id: str) -> None:
        """The server does not hold it any more."""
        with self._lock:
            if self._held.pop(conversation_id, None) is not None:
                self._write(_Line(conversation_id))

    def _write(self, line: _Line) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody knows where the home directory is
            if self._file is None and fcntl is not None:
                self._open()
            if self._file is None:
                return
            lines = [line]
            if not self._held or self._lines >= max(MAX_LINES, 4 * len(self._held)):
                self._file.truncate(0)
                self._lines = 0
                lines = [_Line(each, url) for each, url in self._held.items()]
            self._file.write(_encode(lines))
            self._lines += len(lines)

    def _open(self) -> None:
        directory = state_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(3):
            path = directory / f"{os.getpid()}-{time.time_ns():x}.jsonl"
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            file = os.fdopen(descriptor, "wb", buffering=0)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Before it was locked, another process may have taken it for that of a dead one.
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    self._file, self._path, self._lines = file, path, 0
                    return
            file.close()

    def after_fork(self) -> set[str]:
        """In the child: the file is the parent's, and so is what it holds, which is returned."""
        if self._file is not None:
            self._file.close()
        self._lock = threading.Lock()
        held = set(self._held)
        self._forget()
        return held

    def close(self) -> None:
        """At the end of the process: a file without generations goes."""
        with self._lock:
            path, file, self._file = self._path, self._file, None
            if file is not None and path is not None and self._pid == os.getpid():
                if not self._held:
                    with contextlib.suppress(OSError):
                        path.unlink()
                        path.parent.rmdir()
                        path.parent.parent.rmdir()
                file.close()


def orphans(urls: Collection[str]) -> list[tuple[str, str]]:
    """What the servers at `urls` hold for processes that are gone, as (url, id), taken out of their files."""
    found: list[tuple[str, str]] = []
    if fcntl is None:
        return found
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(state_directory().glob("*.jsonl")):
            with contextlib.suppress(OSError), _own_file(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError: its process lives
                written = path.stat().st_mtime
                old = time.time() - written > MAX_AGE
                held = {} if old else dict(_held(file.read(MAX_FILE_BYTES)))
                mine = [(url, each) for each, url in held.items() if url in urls]
                found += mine
                rest = [_Line(each, url) for each, url in held.items() if url not in urls]
                if rest and not mine:
                    continue
                file.seek(0)
                file.truncate(0)
                file.write(_encode(rest))
                file.flush()
                os.utime(path, (written, written))  # what is left does not become younger
                if not rest:
                    path.unlink()
    return found


def _own_file(path: Path) -> BinaryIO:
    """The file, to read and write.

    Raises:
        OSError: it cannot be opened, or is none of ours: a link to another one (which would be emptied), a pipe, a
            file of somebody else's.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "r+b")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
        return file
    file.close()
    raise PermissionError(f"{path} is not a file of our own")


def _encode(lines: list[_Line]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _held(data: bytes) -> Iterator[tuple[str, str]]:
    """(id, url) of what was not dropped; a line that was cut short counts for nothing."""
    held: dict[str, str] = {}
    for raw in data.split(b"\n"):
        # RecursionError: brackets in brackets, which nobody of us wrote.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            line = msgspec.json.decode(raw, type=_Line)
            if line.url:
                held[line.id] = line.url
            else:
                held.pop(line.id, None)
    yield from held.items()
