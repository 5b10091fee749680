"""Requests with a whole answer, blocking: over a connection of their own, or over the pool's."""

from __future__ import annotations

from time import monotonic
from typing import TypeVar

from llamastream.client.connection import Connection
from llamastream.client.core import ClientCore
from llamastream.client.endpoints import Answer, Call
from llamastream.client.oserrors import connection_lost
from llamastream.client.pool import ConnectionPool, Place
from llamastream.client.servers import Server
from llamastream.errors import ConnectionLostError, LlamaStreamError

T = TypeVar("T")

LOOK_TIMEOUT = 2.0
"""Seconds that a look at `/slots` beside a running stream may take."""


def call_once(
    core: ClientCore, server: Server, call: Call[T], timeout: float, connection: Connection | None = None
) -> T:
    """One request over a connection of its own, outside of the pool and its bounds; a new one may be given, so that
    another thread can break it off.

    Raises:
        LlamaStreamError: there is no connection, the server reported an error, or what answers is no llama-server.
    """
    connection = connection or Connection(server.address, server.tls)
    try:
        return _exchange(core, server, connection, False, call, timeout).value()
    finally:
        connection.close()


def call_pooled(core: ClientCore, pool: ConnectionPool, call: Call[T], timeout: float) -> T:
    """One request over a connection of the pool; a stale one is replaced. Raises as `call_once`.

    If all of the pool are in use, it goes over one more: whether a server is well must not depend on how many streams
    its client reads.
    """
    deadline = monotonic() + timeout
    while True:
        place = Place()
        connection: Connection | None = None
        answer: Answer[T] | None = None
        reused = False
        try:
            acquired = pool.acquire_now(place)
            if acquired is None:
                return call_once(core, pool.server, call, max(0.001, deadline - monotonic()))
            connection, reused = acquired
            answer = _exchange(core, pool.server, connection, reused, call, max(0.001, deadline - monotonic()))
            return answer.value()
        except ConnectionLostError:
            if not reused:
                raise
        finally:
            pool.release(place, connection, answer.reader if answer is not None else None)


def _exchange(
    core: ClientCore, server: Server, connection: Connection, connected: bool, call: Call[T], timeout: float
) -> Answer[T]:
    deadline = monotonic() + timeout
    answer = Answer(call, server.url)
    try:
        if not connected:
            connection.connect(min(deadline, monotonic() + (core.timeouts.connect or timeout)))
        connection.send(core.call_bytes(server, call), deadline)
        while not answer.complete:
            answer.feed(connection.receive(deadline))
    except LlamaStreamError:
        raise
    except TimeoutError:
        raise answer.timed_out(timeout) from None
    except OSError as error:
        raise connection_lost(answer.url, error) from error
    return answer
