"""An instance as other threads than its own see it: read, and never changed."""

from __future__ import annotations

from llamastream.backends import Backend
from llamastream.engine import Engine, EngineOptions
from llamastream.errors import LlamaStreamError
from llamastream.fleet.report import InstanceReport, describe_backend, describe_instance
from llamastream.fleet.run import Findings, Run
from llamastream.fleet.starter import Starter, place_of
from llamastream.policy.instances import InstanceStatus
from llamastream.types import LogRecord


class View:
    """What there is to see of an instance. Its own thread alone writes it, one reference at a time.

    Attributes:
        id, model: its name, and that of its pool. options: how it is started. status: how it is. pid: of the process
            that runs, one that still loads its model included, or 0. ordered: the options that it has, or is to have.
        allowance: bytes that its next process may have beyond what it has when it is ready, unless the settings say
            something else.
        restored: what was in the slots of the process before came back with this one.
        error: what the last start that failed raised; None after one that did not.
    """

    def __init__(self, id: str, model: str, options: EngineOptions) -> None:  # noqa: A002  # that is its name everywhere
        self.id = id
        self.model = model
        self.options = options
        self.ordered = options
        self.status = InstanceStatus()
        self.pid = 0
        self.restored = False
        self.allowance = 0
        self.error: LlamaStreamError | None = None
        self._starter = Starter()
        self._run: Run | None = None
        self._findings: Findings | None = None

    @property
    def holds(self) -> str:
        """Where its process listens, "" if it has none."""
        running = self._starter.last
        here = running.options if self._run is not None and running is not None else self.options
        return place_of(here) if self.pid else ""

    @property
    def moves_to(self) -> str:
        """Where its next process is to listen, "" if that is left open."""
        return place_of(self.ordered)

    @property
    def url(self) -> str:
        """Where it listens, or did; "" before the first start."""
        return "" if self._starter.last is None else self._starter.last.url

    @property
    def engine(self) -> Engine | None:
        """The running server, None if there is none."""
        run = self._run
        return None if run is None else run.engine

    def logs(self) -> list[LogRecord]:
        """The last log records of the process that runs, or ran last."""
        return [] if self._starter.last is None else self._starter.last.logs

    def backend(self) -> Backend:
        """As those see it who send requests."""
        return describe_backend(self, self._starter.last, None if self._run is None else self._findings)

    def report(self) -> InstanceReport:
        """As people see it."""
        return describe_instance(self, self._run, self._starter.last, self._findings)
