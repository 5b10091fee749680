"""What tests of recovery share: undisturbed answers to compare with, and servers that may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from llamastream.engine import Engine, EngineOptions, launch
from ports import free_port
from recovering import Start, Whole
from tools.faults.asking import Answer, Ask, undisturbed


@pytest.fixture(scope="session")
def whole(engine: Engine) -> Whole:
    """A function that gives the undisturbed answer to a request; each is asked for once."""
    known: dict[str, Answer] = {}

    def ask(request: Ask) -> Answer:
        key = repr(request)
        if key not in known:
            known[key] = undisturbed(engine.url, request)
        return known[key]

    return ask


@pytest.fixture
def start(engine: Engine) -> Iterator[Start]:
    """A function that starts one more server of the same kind; all end after the test, stopped ones too."""
    running: list[Engine] = []

    def begin(*, port: int | None = None, **options: object) -> Engine:
        given = {"kind": engine.kind, "threads": 1, "port": port or free_port(), "stop_timeout": 1.0, **options}
        running.append(launch(EngineOptions(**given)).start())  # type: ignore[arg-type]  # checked by EngineOptions
        return running[-1]

    try:
        yield begin
    finally:
        for server in running:
            if server.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, signal.SIGCONT)
            server.stop(0)
