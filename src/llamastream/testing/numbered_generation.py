"""A generation of a `NumberedServer` while it runs: who follows it, what it has said, how it ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from llamastream.testing.numbered_answers import Answer
from llamastream.testing.numbered_writer import Writer
from llamastream.testing.wire import LAST_CHUNK, chunk, readable


class LeftError(ConnectionError):
    """The client has left, or the server goes. Closing the sending side is leaving, as llama-server sees it."""


class Generation:
    """One generation, in a thread of its own, so that it can survive its connection.

    Attributes:
        body: what it has said so far: events, or a JSON document once it is done.
        done: it has ended. cancelled: before its end. slot: where it runs; None while it waits for a slot.
        decoded: how many tokens it has generated. survives: it goes on when its client leaves.
    """

    def __init__(self, answer: Answer, writer: Writer, lock: threading.Condition, *, stream: bool, survives: bool):
        self.answer = answer
        self.stream = stream
        self.survives = survives
        self.body = b""
        self.done = False
        self.cancelled = False
        self.abrupt = False
        self._said = False  # all of it: from then on nothing can cancel it
        self.slot: int | None = None
        self.decoded = 0
        self.started_at = int(time.time())
        self.completed_at = 0
        self._writer = writer
        self._lock = lock
        self._bells: set[socket.socket] = set()

    def pieces(self) -> Iterator[None]:
        """Say the answer, piece by piece; a `next` for each token and one for the end."""
        for number, piece in enumerate(self._writer.stream()):
            with self._lock:
                self._said = number == len(self.answer.tokens)
                self.body += piece if self.stream else b""
                self.decoded = min(self.decoded + 1, len(self.answer.tokens))
            self.changed()
            yield

    def cancel(self, *, abrupt: bool = False) -> None:
        """End it early; `abrupt`: whoever follows it gets no end at all."""
        with self._lock:
            self.abrupt |= abrupt
            self.cancelled = not self._said
        self.changed()

    def end(self) -> None:
        """Note that nothing more comes."""
        with self._lock:
            self.body = self.body if self.stream or self.cancelled else self._writer.whole()
            self.done = True
            self.slot = None
            self.completed_at = int(time.time())
        self.changed()

    def changed(self) -> None:
        """Wake whoever waits for this generation."""
        with self._lock:
            self._lock.notify_all()
            for bell in self._bells:
                with contextlib.suppress(BlockingIOError):
                    bell.send(b"!")

    def follow(self, bell: socket.socket) -> None:
        with self._lock:
            self._bells.add(bell)

    def leave(self, bell: socket.socket) -> None:
        with self._lock:
            self._bells.discard(bell)


class Follower:
    """Brings what a generation says to a client, and notices at once when the client leaves."""

    def __init__(self, generation: Generation, connection: socket.socket) -> None:
        self._generation = generation
        self._connection = connection
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        generation.follow(self._bell)

    def send(self, head: bytes, start: int, *, head_first: bool) -> None:
        """Send the body from byte `start` on, chunked, to its end.

        Args:
            head_first: send the head at once. Else it comes with the first byte of the body: llama-server sends nothing
                before a request has a slot.

        Raises:
            LeftError: the client has left, or the server goes down.
        """
        ahead = b"" if head_first else head
        if head_first:
            self._connection.sendall(head)
        while True:
            done = self._generation.done  # first: what it said before its end is then there
            data = self._generation.body[start:]
            if self._generation.abrupt:
                raise LeftError
            start += len(data)
            if data or done:
                self._connection.sendall(ahead + (chunk(data) if data else b"") + (LAST_CHUNK if done else b""))
                ahead = b""
            if done:
                return
            self._wait()

    def wait_until_done(self) -> None:
        """Wait for the end of the generation.

        Raises:
            LeftError: the client has left, or the server goes down.
        """
        while not self._generation.done:
            self._wait()
        if self._generation.abrupt:
            raise LeftError

    def _wait(self) -> None:
        ready = readable(self._ear, self._connection)
        if self._connection in ready and not self._connection.recv(1, socket.MSG_PEEK):
            raise LeftError
        if self._ear in ready:
            self._ear.recv(4096)
        else:
            time.sleep(0.001)  # the client sends ahead: what it sends is looked at later

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generation.leave(self._bell)
        self._bell.close()
        self._ear.close()
