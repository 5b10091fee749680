"""What `serve` says while it runs: records on stderr, for people or as JSON, and events on stdout for programs."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, cast

import msgspec
from msgspec.structs import replace

from llamastream.cli.linewriter import LineSink, LineWriter
from llamastream.fleet.records import Level, Record, as_dict, at_least, encodable
from llamastream.printable import one_line

if TYPE_CHECKING:  # for people alone: in a service, which writes JSON, it would be megabytes that nobody needs
    from rich.console import Console
    from rich.text import Text

LogFormat: TypeAlias = Literal["auto", "json", "human"]
_STYLES: dict[Level, str] = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
_IMPORTANT = at_least("warning")
_HIDDEN = "***"


class ServeLog:
    """Where records go. Thread-safe, and waits for nobody.

    Attributes:
        form: `human`, `json`, or `off`: on stderr. on_broken: called when nobody reads stdout any more.
        announced: people have been told that all is ready; what went well before that, is not told one by one.
    """

    def __init__(self, log_format: LogFormat, *, events: bool, verbose: bool) -> None:
        """Args:
        log_format: `auto` is `human` on a terminal, else `json`, but nothing where `events` go to stdout.
        events: records and more to stdout, as JSON lines. verbose: everything that servers log.
        """
        terminal = sys.stderr is not None and sys.stderr.isatty()
        auto: Literal["human", "json", "off"] = "off" if events else "human" if terminal else "json"
        self.form = auto if log_format == "auto" else log_format
        self.on_broken: Callable[[], None] | None = None
        self.announced = False
        self._verbose = verbose
        self._secrets: tuple[str, ...] = ()
        self._stderr = LineWriter(sys.stderr, on_dropped=self._dropped)
        self._stdout = None
        if events:
            self._stdout = LineWriter(sys.stdout, on_dropped=_dropped_event, on_broken=self._broken)
        self._terminal = terminal

    @functools.cached_property
    def console(self) -> Console:
        """Prints to stderr, in the form `human` alone."""
        from rich.console import Console

        return Console(
            file=cast("IO[str]", LineSink(self._stderr, self._terminal)),
            highlight=False,
            width=_width() if self._terminal else None,
            quiet=self.form != "human",
        )

    def hide(self, secrets: Iterable[str]) -> None:
        """Never show these: our own messages hold none, but a stranger's might."""
        self._secrets = tuple(dict.fromkeys((*self._secrets, *secrets)))

    def take(self, record: Record) -> None:
        """A record."""
        record = self.censored(encodable(record))
        if self._stdout is not None:
            self.event(_as_event(record))
        if not (self._verbose or self._is_of_interest(record)):
            return
        if self.form == "json":
            self._stderr.put(_line(as_dict(record)))
        elif self.form == "human":
            self.console.print(_human(record), soft_wrap=True)

    def event(self, event: dict[str, Any]) -> None:
        """An event for programs, on stdout."""
        if self._stdout is not None:
            self._stdout.put(_line(event))

    def close(self) -> None:
        """Write what waits, if anybody reads it."""
        for writer in (self._stdout, self._stderr):
            if writer is not None:
                writer.close()

    def _is_of_interest(self, record: Record) -> bool:
        if record.event == "server_log":
            # servers warn of the same at each start: that is for files, not for people
            return record.level == "error" or (record.level == "warning" and self.form == "json")
        if record.event == "request" and self.form == "human":
            return record.level in _IMPORTANT  # a line for each request is for files
        if self.form == "human" and not self.announced:
            return record.level in _IMPORTANT
        return record.level != "debug"

    def _broken(self) -> None:
        if self.on_broken is not None:
            self.on_broken()

    def censored(self, record: Record) -> Record:
        """The record without what is to be hidden."""
        for secret in self._secrets:
            if secret in record.message:
                record = replace(record, message=record.message.replace(secret, _HIDDEN))
        return record

    def _dropped(self, count: int) -> bytes:
        message = f"{count} records are missing here: nobody read them in time"
        record = Record(time=time.time(), level="warning", event="dropped", message=message, fields={"count": count})
        return _line(as_dict(record)) if self.form == "json" else f"{message}\n".encode()


class LoggingBridge(logging.Handler):
    """Python's logging of this package, as records."""

    def __init__(self, take: Callable[[Record], None]) -> None:
        super().__init__(logging.WARNING)
        self._take = take
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        self._take(
            Record(time=record.created, level=level, event="log", message=self.format(record), source=record.name)
        )


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _dropped_event(count: int) -> bytes:
    return _line({"event": "dropped", "count": count})


def _as_event(record: Record) -> dict[str, Any]:
    logged = record.event == "server_log"
    event = {"event": "log" if logged else record.event, "time": record.time, "level": record.level}
    event |= {"instance": record.instance, "message": record.message}
    return {**record.fields, **event, **({"source": record.source} if logged else {})}


def _human(record: Record) -> Text:
    return human_line(record, time.strftime("%H:%M:%S", time.localtime(record.time)))


def human_line(record: Record, when: str) -> Text:
    """A record for people: the time, whom it is about, and what was said."""
    from rich.text import Text

    source = f"{record.source}: " if record.source else ""
    text = Text.assemble((f"{when} ", "dim"), (f"{record.instance} " if record.instance else "", "bold"))
    level = f"{record.level}: " if record.level in _IMPORTANT else ""
    return text.append(one_line(f"{level}{source}{record.message}"), _STYLES[record.level])


def _width() -> int | None:
    try:
        return os.get_terminal_size(2).columns or None
    except OSError:
        return None
