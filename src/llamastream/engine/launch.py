"""`launch`: from options to a running server, for `with`, `async with`, or by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from llamastream.engine.options import EngineOptions
from llamastream.engine.server import Engine
from llamastream.engine.startup import start
from llamastream.errors import EngineError, SettingError
from llamastream.types import LogRecord


def launch(
    options: EngineOptions | None = None,
    *,
    on_log: Callable[[LogRecord], None] | None = None,
    on_spawn: Callable[[int], None] | None = None,
) -> Launch:
    """Prepare to start a llama-server; entering the result starts it, leaving stops it.

        with launch(EngineOptions(model="model.gguf")) as engine:
            print(engine.url)

    Args:
        options: how to start it; None: the demo model on a free port of 127.0.0.1.
        on_log: called with each log record, in a thread of its own.
        on_spawn: called with the process id when the process exists and begins to load its model.

    Returns:
        A `Launch`, for `with`, `async with`, `.start()` or `await .astart()`. These raise `SettingError` or a subclass
        of `EngineError` if no server comes up.
    """
    if options is not None and not isinstance(options, EngineOptions):
        raise SettingError(f"launch takes EngineOptions, not {options!r}; for a model file: EngineOptions(model=...)")
    return Launch(options or EngineOptions(), on_log, on_spawn)


class Launch:
    """A server about to be started. Can be started once."""

    def __init__(
        self,
        options: EngineOptions,
        on_log: Callable[[LogRecord], None] | None = None,
        on_spawn: Callable[[int], None] | None = None,
    ) -> None:
        self.options = options
        self.engine: Engine | None = None
        self._on_log = on_log
        self._on_spawn = on_spawn
        self._begun = False
        self._cancelled = threading.Event()

    def start(self) -> Engine:
        """Start the server and wait until it is ready.

        Raises:
            SettingError: the options cannot be used.
            EngineMissingError: there is no llama-server and no embedded engine.
            ModelFileError: the model is missing, unreadable or broken.
            ModelDownloadError: the model could not be downloaded.
            PortInUseError: the address is taken.
            UnsupportedFlagError: the engine does not know a flag.
            EngineMemoryError: not enough memory.
            EngineCrashedError: the server died for another reason.
            EngineStartTimeoutError: it was not ready within `start_timeout`.
        """
        if self._begun:
            raise EngineError("this launch has been used: call launch() again for another server")
        self._begun = True
        self.engine = start(self.options, self._on_log, self._cancelled, self._on_spawn)
        return self.engine

    def cancel(self) -> None:
        """Give a start up that another thread waits for: `start` raises `EngineError`, and leaves no server behind."""
        self._cancelled.set()

    async def astart(self) -> Engine:
        """`start` for coroutines; a cancelled start leaves no server behind."""
        import asyncio  # costs memory that a supervisor without coroutines need not spend

        starting = asyncio.get_running_loop().run_in_executor(None, self.start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self.cancel()
            with suppress(EngineError):
                engine = await starting
                await engine.astop()
            raise

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.engine is not None:
            self.engine.stop()

    async def __aenter__(self) -> Engine:
        return await self.astart()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.engine is not None:
            await self.engine.astop()
