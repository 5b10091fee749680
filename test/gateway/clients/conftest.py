"""Gateways before real servers, for clients that other people wrote. They run in an environment of their own
(`make test-sdks`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleets import Watched, running
from gateways import Running, serving
from llamastream.engine import EngineOptions
from llamastream.gateway import GatewaySettings

KEY = "sk-user-0123456789"


@pytest.fixture(scope="module")
def pair() -> Iterator[Watched]:
    """Two servers with the demo model."""
    with running(EngineOptions(threads=1, parallel=8), instances=2, wedge_after=30.0) as watched:
        yield watched


@pytest.fixture(scope="module")
def gateway(pair: Watched) -> Iterator[Running]:
    """With a key, bodies of at most 100 kB, and models by their right names only."""
    with serving(pair.fleet, GatewaySettings(api_keys=KEY, max_body=100_000, strict_model=True)) as there:
        yield there


@pytest.fixture
def all_ready(pair: Watched) -> None:
    pair.wait_for(lambda: all(each.state == "ready" for each in pair.fleet.snapshot()), "all ready")
