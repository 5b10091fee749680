"""CrewAI without telemetry, questions and files in the home directory; and a watch that it stays on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from athome import AT_HOME

T = TypeVar("T")

_storage = tempfile.TemporaryDirectory(prefix="llamastream-crewai-")
# Before CrewAI is imported, which reads them then.
os.environ.update(AT_HOME, CREWAI_STORAGE_DIR=_storage.name)

_outside: list[Any] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not ip_address(arguments[1][0]).is_loopback:
        _outside.append(arguments[1])
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1"):
        _outside.append(arguments[0])


if find_spec("crewai") is not None:
    sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def stay_at_home() -> Iterator[None]:
    """Fail a test in which anything talked to, or asked for the address of, another machine."""
    _outside.clear()
    yield
    assert _outside == []


def blocking(llm: Any, *arguments: Any, **more: Any) -> Any:
    return llm.call(*arguments, **more)


def asynchronous(llm: Any, *arguments: Any, **more: Any) -> Any:
    return asyncio.run(llm.acall(*arguments, **more))


@pytest.fixture(params=[blocking, asynchronous])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`call`, and `acall`."""
    function: Callable[..., Any] = request.param
    return function


@pytest.fixture
def closing() -> Iterator[Callable[[T], T]]:
    """A function that takes a model of CrewAI's own and hands it back; its connections, which CrewAI leaves open, are
    closed after the test."""
    models: list[Any] = []

    def keep(llm: T) -> T:
        models.append(llm)
        return llm

    yield keep
    for llm in models:
        llm._get_sync_client().close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CrewAI uses what it calls deprecated itself; that is no fault of a test here."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:crewai"))
