"""The processes of one instance, one after the other: each is started where the one before it listened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from llamastream.engine import Engine, EngineOptions, Launch, launch
from llamastream.types import LogRecord


class Starter:
    """Starts them. Used by the instance's thread, but for `cancel`.

    Attributes:
        last: the process that was ready last, None before the first.
    """

    def __init__(self) -> None:
        self.last: Engine | None = None
        self._launch: Launch | None = None

    def start(
        self,
        options: EngineOptions,
        *,
        slots: Path | None,
        on_log: Callable[[LogRecord], None],
        on_spawn: Callable[[int], None],
        unwanted: Callable[[], bool],
    ) -> Engine:
        """Start one, and wait until it is ready.

        Args:
            slots: where it is to save slots for its successor. unwanted: whether nobody wants it any more.

        Raises:
            LlamaStreamError: see `Launch.start`.
        """
        self._launch = launch(self._completed(options, slots), on_log=on_log, on_spawn=on_spawn)
        if unwanted():
            self._launch.cancel()
        try:
            self.last = self._launch.start()
        finally:
            self._launch = None
        return self.last

    def cancel(self) -> None:
        """End a start that is under way."""
        if (launching := self._launch) is not None:
            launching.cancel()

    def _completed(self, options: EngineOptions, slots: Path | None) -> EngineOptions:
        changes: dict[str, object] = {}
        # the address stays, so that whoever knows it finds the new process there
        if self.last is not None and options.socket is None and not options.port:
            changes["port"] = self.last.options.port
        if slots is not None:
            changes["slot_save_path"] = str(slots)
        return msgspec.structs.replace(options, **changes)


def place_of(options: EngineOptions) -> str:
    """Where a server with these options listens, "" if that is left open."""
    if options.socket is not None:
        return options.socket
    return f"port {options.port}" if options.port else ""
