"""What tests of the integrations share: a gateway before servers that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fleets import Watched
    from gateways import Running


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Watched, Running]]:
    from gateways import before_two  # needs the extra server, which is not wherever these tests run

    with before_two() as there:
        yield there


@pytest.fixture
def fleet(both: tuple[Watched, Running]) -> Watched:
    return both[0]


@pytest.fixture
def gateway(both: tuple[Watched, Running]) -> Running:
    return both[1]
