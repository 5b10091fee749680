"""One way to use either client in a test: the same calls, blocking, over the sync and the async client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.types import Result, StreamEvent

T = TypeVar("T")


class Driver(Protocol):
    """Uses a client from beginning to end; `options` go to the client's constructor, `request` to `stream_chat`."""

    name: str

    def texts(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> list[str]: ...

    def events(
        self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any
    ) -> list[StreamEvent]: ...

    def result(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> Result: ...

    def call(self, url: str, method: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Any other method of the client."""

    def leave(
        self, url: str, messages: Any, how: str, after: int, wait: Callable[[], float]
    ) -> tuple[str | None, float]:
        """Read `after` texts, leave by break, close, with, error or thread; (finish reason, what `wait` returned)."""


class SyncDriver:
    name = "sync"

    def texts(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> list[str]:
        with StreamingClient(url, **(options or {})) as client:
            return list(client.stream_chat(messages, **request))

    def events(
        self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any
    ) -> list[StreamEvent]:
        with StreamingClient(url, **(options or {})) as client:
            return list(client.stream_chat(messages, **request).events())

    def result(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> Result:
        with StreamingClient(url, **(options or {})) as client:
            return client.chat(messages, **request)

    def call(self, url: str, method: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with StreamingClient(url, **(options or {})) as client:
            return getattr(client, method)(*args, **kwargs)

    def leave(
        self, url: str, messages: Any, how: str, after: int, wait: Callable[[], float]
    ) -> tuple[str | None, float]:
        stream = StreamingClient(url).stream_chat(messages, ignore_eos=True)
        if how == "break":
            for number, _ in enumerate(stream, 1):
                if number == after:
                    break
        elif how == "close":
            for _ in range(after):
                next(stream)
            stream.close()
        elif how == "with":
            with stream:
                for _ in range(after):
                    next(stream)
        elif how == "error":
            try:
                for number, _ in enumerate(stream, 1):
                    if number == after:
                        raise ValueError("from inside the loop")
            except ValueError:
                pass
        else:
            thread = threading.Thread(target=stream.cancel)
            for number, _ in enumerate(stream, 1):
                if number == after:
                    thread.start()
            thread.join()
        return stream.finish_reason, wait()


class AsyncDriver:
    name = "asyncio"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def texts(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> list[str]:
        async def work() -> list[str]:
            async with AsyncStreamingClient(url, **(options or {})) as client:
                return [text async for text in client.stream_chat(messages, **request)]

        return self.run(work())

    def events(
        self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any
    ) -> list[StreamEvent]:
        async def work() -> list[StreamEvent]:
            async with AsyncStreamingClient(url, **(options or {})) as client:
                return [event async for event in client.stream_chat(messages, **request).events()]

        return self.run(work())

    def result(self, url: str, messages: Any, options: dict[str, Any] | None = None, **request: Any) -> Result:
        async def work() -> Result:
            async with AsyncStreamingClient(url, **(options or {})) as client:
                return await client.chat(messages, **request)

        return self.run(work())

    def call(self, url: str, method: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async def work() -> Any:
            async with AsyncStreamingClient(url, **(options or {})) as client:
                return await getattr(client, method)(*args, **kwargs)

        return self.run(work())

    def leave(
        self, url: str, messages: Any, how: str, after: int, wait: Callable[[], float]
    ) -> tuple[str | None, float]:
        async def work() -> tuple[str | None, float]:
            stream = AsyncStreamingClient(url).stream_chat(messages, ignore_eos=True)

            async def read() -> None:
                number = 0
                async for _ in stream:
                    number += 1
                    if number == after:
                        if how == "break":
                            return
                        if how == "close":
                            await stream.close()
                        elif how == "error":
                            raise ValueError("from inside the loop")
                        elif how == "thread":
                            await asyncio.to_thread(stream.cancel)

            if how == "with":
                async with stream:
                    for _ in range(after):
                        await anext(stream)
            elif how == "task":
                reached = asyncio.Event()

                async def tell() -> None:
                    async for _ in stream:
                        reached.set()

                task = asyncio.create_task(tell())
                await reached.wait()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                await asyncio.gather(read(), return_exceptions=True)
            waited = await asyncio.to_thread(wait)
            return stream.finish_reason, waited

        return self.run(work())


class UvloopDriver(AsyncDriver):
    name = "uvloop"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        import uvloop

        result: T = uvloop.run(work)
        return result


DRIVERS: list[Driver] = [SyncDriver(), AsyncDriver(), UvloopDriver()]
