"""What tests of the clients share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivers import DRIVERS
from faults import descriptors, wait_until
from llamastream.engine import Engine


@pytest.fixture(scope="module")
def warm(engine: Engine) -> None:
    """What a client or a loop opens once for the whole process is open before anything is counted."""
    for driver in DRIVERS:
        driver.call(engine.url, "health")


@pytest.fixture
def no_descriptor_is_left(warm: None) -> Iterator[None]:
    """The test leaves no socket open."""
    before = descriptors()
    yield
    assert wait_until(lambda: descriptors() <= before)


@pytest.fixture
def no_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that breaks in the middle ends: what is tested is how."""
    monkeypatch.setenv("LLAMASTREAM_RECOVERY", "off")
