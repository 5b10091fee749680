"""A gateway before real servers, for clients that other people wrote. They run in an environment of their own
(`make test-sdks`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleets import Watched
from gateways import USER_KEY, Running, before_two
from llamastream.gateway import GatewaySettings


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Watched, Running]]:
    """With a key, bodies of at most 100 kB, and models by their right names only."""
    with before_two(GatewaySettings(api_keys=USER_KEY, max_body=100_000, strict_model=True)) as there:
        yield there


@pytest.fixture
def pair(both: tuple[Watched, Running]) -> Watched:
    return both[0]


@pytest.fixture
def gateway(both: tuple[Watched, Running]) -> Running:
    return both[1]


@pytest.fixture
def all_ready(pair: Watched) -> None:
    pair.wait_all_ready()
