"""Fixtures that tests of every layer use: a real llama-server on the demo model, and a watch on its slots."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Literal, TypeAlias

import pytest

from llamastream.client import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine.probe import find_binary


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests see neither the settings file nor the LLAMASTREAM_* variables of whoever runs them, and leave no state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in [name for name in os.environ if name.startswith("LLAMASTREAM_")]:
            patch.delenv(name)
        yield


Kind: TypeAlias = Literal["embedded", "executable"]


def engine_kinds() -> list[Kind]:
    """Both kinds where a llama-server executable is there (LLAMA_SERVER_BIN, PATH), else the embedded engine."""
    return ["embedded", "executable"] if find_binary() is not None else ["embedded"]


@pytest.fixture(scope="session")
def _engine_of() -> Iterator[Callable[[Kind], Engine]]:
    """A function that gives the engine of a kind. Each is started once: files, which come one after the other where
    several processes share the tests, take turns between the kinds."""
    running: dict[Kind, Engine] = {}
    with ExitStack() as stack:

        def engine_of(kind: Kind) -> Engine:
            if kind not in running:
                # One thread: the model is so small that a second one only takes the core from the test itself.
                running[kind] = stack.enter_context(launch(EngineOptions(kind=kind, threads=1)))
            return running[kind]

        yield engine_of


@pytest.fixture(scope="session", params=engine_kinds())
def engine(request: pytest.FixtureRequest, _engine_of: Callable[[Kind], Engine]) -> Engine:
    """A real llama-server with the demo model: four slots of 8,192 tokens."""
    return _engine_of(request.param)


@pytest.fixture
def client(engine: Engine) -> Iterator[StreamingClient]:
    with StreamingClient(engine.url) as client:
        yield client


@pytest.fixture
def slots_free(engine: Engine) -> Callable[[], float]:
    """A function that waits until no slot works and returns how many seconds that took (10 at most, then it fails)."""

    def wait() -> float:
        started = time.monotonic()
        with StreamingClient(engine.url) as watcher:
            while any(slot["is_processing"] for slot in watcher.slots()):
                assert time.monotonic() - started < 10, "a slot is still busy after 10 s"
                threading.Event().wait(0.005)  # a poll: the server has no event for this
        return time.monotonic() - started

    return wait
