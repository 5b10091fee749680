"""What servers hold for a client (generations under an id) is dropped in the background, and after a crash by the next
process.

Closing the connection does not end such a generation; only `DELETE /v1/stream` does, and it also frees the memory of
one that has ended. No stream waits for that: one thread of the process does it, for all clients, sync and async.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import weakref
from time import monotonic, sleep
from typing import TypeAlias

from llamastream.client import endpoints
from llamastream.client.attempt import stream_path
from llamastream.client.core import ClientCore
from llamastream.client.ledger import Ledger, orphans
from llamastream.client.servers import Server
from llamastream.client.unary import call_once
from llamastream.errors import LlamaStreamError

DROP_TIMEOUT = 2.0
"""Seconds that a server may take to drop a generation."""

LEAVE_ALONE = 5.0
"""Seconds for which a server that did not answer is not asked again: what it holds is left for later."""

EXIT_TIMEOUT = 2.0
"""Seconds that the end of the process waits for what is still to be dropped."""

MAX_UNDONE = 1024
"""Generations for each server that is not there which are remembered, so that they are dropped when it is back."""

HEAD_START = 0.02
"""Seconds that a request has before the one to drop it is sent after it, over another connection."""

_NO_SUCH_ENDPOINT = (404, 405)
"""Answers of what holds nothing: an old server, or a gateway."""

_Job: TypeAlias = "tuple[ClientCore, Server, str | None, float] | threading.Event"
"""An id to drop on a server, and from when on; None: what the server holds for processes that are gone. Or a mark."""


class _Worker:
    """The thread, begun when it is needed."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._start_anew()
        atexit.register(self._exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _start_anew(self) -> None:
        # SimpleQueue.put may be called from a finalizer, in the middle of anything.
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # With the core, since in a finalizer a weak reference to it may be dead already.
        self._held: dict[str, tuple[ClientCore, Server]] = {}
        self._undone: dict[str, list[str]] = {}  # by server, what it was not there to drop
        self._reaped: set[str] = set()
        self._silent: dict[str, float] = {}
        self._starting = threading.Lock()

    def _after_fork(self) -> None:
        self._start_anew()
        self.ledger.after_fork()

    def add(self, core: ClientCore, server: Server, conversation_id: str) -> None:
        """A server is about to hold a generation."""
        self._held[conversation_id] = core, server
        self._reap(core, server)
        self.ledger.add(server.url, conversation_id)

    def drop(self, conversation_id: str, begin_at: float) -> None:
        """Have the server drop it, soon. Nothing happens in a forked child, whose copy of a stream is not its own."""
        held = self._held.pop(conversation_id, None)
        if held is not None:
            self._submit((*held, conversation_id, begin_at))

    def _submit(self, job: _Job) -> None:
        self._jobs.put(job)
        if self._thread is not None and self._thread.is_alive():
            return
        if self._starting.acquire(blocking=False):  # else somebody is about to
            try:
                thread = threading.Thread(target=self._run, name="llamastream-holdings", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is going down
                    thread.start()
                    self._thread = thread
            finally:
                self._starting.release()

    def _reap(self, core: ClientCore, server: Server) -> None:
        """Once for each server, drop what it holds for processes that are gone."""
        if server.url not in self._reaped:
            self._reaped.add(server.url)
            self._submit((core, server, None, 0.0))

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if isinstance(job, threading.Event):
                job.set()
                continue
            core, server, conversation_id, begin_at = job
            del job
            sleep(max(0.0, begin_at - monotonic()))
            if conversation_id is not None:
                self._drop(core, server, conversation_id)
            else:
                for _, orphan in orphans({server.url}):
                    self.ledger.add(server.url, orphan)  # ours now: if the server is not there, it is tried again
                    self._drop(core, server, orphan)
            del core, server  # a client that nobody else knows must not live until the next job

    def _drop(self, core: ClientCore, server: Server, conversation_id: str) -> None:
        if not self._ask(core, server, conversation_id):
            undone = self._undone.setdefault(server.url, [])
            undone.append(conversation_id)
            del undone[:-MAX_UNDONE]
            return
        self.ledger.remove(conversation_id)
        for left in self._undone.pop(server.url, ()):  # it is back
            if self._ask(core, server, left):
                self.ledger.remove(left)

    def _ask(self, core: ClientCore, server: Server, conversation_id: str) -> bool:
        """Have the server drop it; whether it answered."""
        if monotonic() < self._silent.get(server.url, 0.0):
            return False
        try:
            status = call_once(core, server, endpoints.drop_generation(stream_path(conversation_id)), DROP_TIMEOUT)
        except LlamaStreamError:
            self._silent[server.url] = monotonic() + LEAVE_ALONE
            return False
        if status in _NO_SUCH_ENDPOINT:  # for an unknown id the answer would be another
            server.reattach = False
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until all that was submitted is done; whether it was."""
        if self._thread is None or not self._thread.is_alive():
            return self._jobs.empty()
        mark = threading.Event()
        self._jobs.put(mark)
        return mark.wait(timeout)

    def _exit(self) -> None:
        for conversation_id in list(self._held):  # of streams that nobody will read any more
            self.drop(conversation_id, 0.0)
        self.flush(EXIT_TIMEOUT)
        self.ledger.close()


_worker: _Worker | None = None
_making = threading.Lock()


def _renew() -> None:
    global _making  # in a forked child; a thread that made a worker at that moment does not exist there
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _get_worker() -> _Worker:
    global _worker  # one for the process, made when it is first needed
    if _worker is not None:  # without the lock, since a finalizer may come in the middle of anything
        return _worker
    with _making:
        if _worker is None:
            _worker = _Worker()
        return _worker


def flush(timeout: float = EXIT_TIMEOUT) -> bool:
    """Wait until servers have been told of all that is to be dropped; whether they were within `timeout` seconds."""
    return _worker is None or _worker.flush(timeout)


class Holdings:
    """What the servers of one client hold."""

    def __init__(self, core: ClientCore) -> None:
        # The core refers to this by its state.
        self._core = weakref.ref(core)

    def add(self, server: Server, conversation_id: str) -> None:
        """A server is about to hold a generation."""
        core = self._core()
        if core is not None:  # always: the stream that asks has it
            _get_worker().add(core, server, conversation_id)

    def drop(self, server: Server, conversation_id: str, *, begun: bool) -> None:
        """Have the server drop it, soon. `begun`: the server has answered, so that it knows the id."""
        del server  # the worker knows
        _get_worker().drop(conversation_id, 0.0 if begun else monotonic() + HEAD_START)
