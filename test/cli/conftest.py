"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Serving, environment, fleet_of_two, runtime_directory


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment for one test."""
    with runtime_directory() as runtime:
        yield environment(tmp_path, runtime)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`llamastream serve --no-gateway` with two instances, for the tests of a module that leave it as it was."""
    with (
        runtime_directory() as runtime,
        fleet_of_two(environment(tmp_path_factory.mktemp("home"), runtime), "--no-gateway") as started,
    ):
        yield started
