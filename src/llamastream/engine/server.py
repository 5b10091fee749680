"""A running server, whichever kind of engine it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamastream.engine.address import ServerAddress
from llamastream.engine.options import EngineOptions
from llamastream.engine.process import ServerProcess
from llamastream.types import Capabilities, LogRecord


class Engine:
    """A llama-server that was started by `launch`. All methods are thread-safe.

    Attributes:
        address: where it answers. url: `http://127.0.0.1:PORT`, or `unix:///path/to.sock`.
        socket: the Unix socket's path, or None.
        pid: process id of the server (the process that listens).
        kind: `executable` or `embedded`.
        options: the options with everything resolved (threads, context, port, model path).
        capabilities: what the server can do, as it said itself.
        api_key: the key that clients must send, or None.
        command: the command line, with secrets hidden.
        warnings: flags that were translated or dropped, and limits that were applied.
        start_seconds: how long the start took, until the server was ready.
    """

    def __init__(
        self,
        process: ServerProcess,
        address: ServerAddress,
        *,
        kind: str,
        options: EngineOptions,
        capabilities: Capabilities,
        command: Sequence[str],
        warnings: Sequence[str],
        start_seconds: float,
    ) -> None:
        self._process = process
        self.address = address
        self.url = address.url
        self.socket = address.socket
        self.pid = process.pid
        self.kind = kind
        self.options = options
        self.capabilities = capabilities
        self.api_key = options.api_key
        self.command = tuple(command)
        self.warnings = list(warnings)
        self.start_seconds = start_seconds

    def __repr__(self) -> str:
        state = "running" if self.alive else f"exit code {self._process.exit_code}"
        return f"<Engine {self.kind} {self.url} pid={self.pid} {state}>"

    @property
    def logs(self) -> list[LogRecord]:
        """The last log records (at most 2,000), newest last."""
        return self._process.ring.records()

    @property
    def alive(self) -> bool:
        """Whether the server's process still runs."""
        return self._process.alive

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server has ended; its exit code (negative: the signal), or None after `timeout` seconds."""
        return self._process.wait(timeout)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the process has ended, at once if it has; in any thread, it must not wait."""
        self._process.when_ended(callback)

    def kill(self) -> None:
        """End the server at once (SIGKILL); `wait` says when it has ended."""
        self._process.kill()

    def stop(self, timeout: float | None = None) -> int | None:
        """End the server: SIGTERM, then SIGKILL after `timeout` seconds (default: `options.stop_timeout`).

        Streams that are under way are cut: drain them first if they matter. Idempotent.

        Returns:
            The exit code, negative for a signal.
        """
        return self._process.stop(self.options.stop_timeout if timeout is None else timeout)

    async def await_exit(self, timeout: float | None = None) -> int | None:
        """`wait` for coroutines."""
        import asyncio  # costs memory that a supervisor without coroutines need not spend

        return await asyncio.to_thread(self.wait, timeout)

    async def astop(self, timeout: float | None = None) -> int | None:
        """`stop` for coroutines."""
        import asyncio  # costs memory that a supervisor without coroutines need not spend

        return await asyncio.to_thread(self.stop, timeout)
