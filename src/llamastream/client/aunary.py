"""Requests with a whole answer, for asyncio: over a connection of their own, or over the pool's."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Generic, TypeVar

from llamastream.client.aconnection import AsyncConnection
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.core import ClientCore
from llamastream.client.endpoints import Answer, Call
from llamastream.client.oserrors import connection_lost
from llamastream.client.pool import Place
from llamastream.client.servers import Server
from llamastream.errors import ConnectionLostError, LlamaStreamError

T = TypeVar("T")


class _AnswerReceiver(Generic[T]):
    """Collects the answer to a call; `done` is set when it is whole, or raises what went wrong."""

    def __init__(self, answer: Answer[T]) -> None:
        self.answer = answer
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        try:
            self.answer.feed(data)
        except LlamaStreamError as error:
            self.done.set_exception(error)
        else:
            if self.answer.complete:
                self.done.set_result(None)

    def closed(self, error: OSError | None) -> None:
        if error is None:
            self.data_received(b"")
        elif not self.done.done():
            self.done.set_exception(error)


async def call_once(core: ClientCore, server: Server, call: Call[T], timeout: float) -> T:
    """One request over a connection of its own, outside of the pool and its bounds.

    Raises:
        LlamaStreamError: there is no connection, the server reported an error, or what answers is no llama-server.
    """
    connection = AsyncConnection()
    try:
        return (await _exchange(core, server, connection, False, call, timeout)).value()
    finally:
        connection.abort()


async def call_pooled(core: ClientCore, pool: AsyncConnectionPool, call: Call[T], timeout: float) -> T:
    """One request over a connection of the pool; a stale one is replaced. Raises as `call_once`.

    If all of the pool are in use, it goes over one more: whether a server is well must not depend on how many streams
    its client reads.
    """
    deadline = monotonic() + timeout
    while True:
        place = Place()
        connection: AsyncConnection | None = None
        answer: Answer[T] | None = None
        reused = False
        try:
            acquired = await pool.acquire_now(place)
            if acquired is None:
                return await call_once(core, pool.server, call, max(0.001, deadline - monotonic()))
            connection, reused = acquired
            answer = await _exchange(core, pool.server, connection, reused, call, max(0.001, deadline - monotonic()))
            return answer.value()
        except ConnectionLostError:
            if not reused:
                raise
        finally:
            pool.release(place, connection, answer.reader if answer is not None else None)


async def _exchange(
    core: ClientCore, server: Server, connection: AsyncConnection, connected: bool, call: Call[T], timeout: float
) -> Answer[T]:
    receiver = _AnswerReceiver(Answer(call, server.url))
    try:
        async with asyncio.timeout(timeout):
            if connected:
                connection.keep(receiver)
            else:
                limit = min(timeout, core.timeouts.connect or timeout)
                await connection.connect(receiver, server.address, server.tls, limit)
            connection.send(core.call_bytes(server, call))
            await receiver.done
    except LlamaStreamError:
        raise
    except TimeoutError:
        raise receiver.answer.timed_out(timeout) from None
    except OSError as error:
        raise connection_lost(receiver.answer.url, error) from error
    finally:
        receiver.done.cancel()
    return receiver.answer
