"""`make bench-client` in its shortest form: everyone reads all that was sent, and the figures have their shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CHUNKS = 200
CHARACTERS = 739
"""Of 200 pieces of the origin's text: counted by hand, so that the test does not ask the code that it checks."""

HALF_THE_CHARACTERS = 370
"""Of 100 pieces."""

FLOORS = ["raw", "raw-asyncio"]
READERS = ["llamastream", "llamastream-asyncio", "stdlib"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("bench") / "client.json"
    sizes = {
        "rounds": 1,
        "laps": 2,
        "paced-chunks": CHUNKS,
        "burst-chunks": CHUNKS,
        "memory-chunks": 2000,
        "connections": 20,
    }
    options = [f"--{name}={value}" for name, value in sizes.items()]
    done = bench(*options, "--import-rounds=1", f"--clients={','.join(FLOORS + READERS)}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "| **llamastream, sync** |" in done.stdout
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize("mode", ["paced", "burst"])
@pytest.mark.parametrize("client", READERS)
def test_every_client_finds_every_chunk_and_every_character(figures: dict[str, Any], mode: str, client: str) -> None:
    found = figures[mode]["clients"][client]
    laps = {"paced": 2, "burst": 1}[mode]
    assert found["chunks"] == [CHUNKS // laps] * laps
    assert found["characters"] == {"paced": [HALF_THE_CHARACTERS] * 2, "burst": [CHARACTERS]}[mode]
    for spread in (found["cpu_us"], found["ratio_to_raw"]):
        assert spread["min"] <= spread["low"] <= spread["median"] <= spread["high"] <= spread["max"]


@pytest.mark.parametrize("client", FLOORS)
def test_paced_means_one_event_per_read(figures: dict[str, Any], client: str) -> None:
    # The header (with which the first piece may come) and the end of the stream are reads of their own.
    for reads in figures["paced"]["clients"][client]["reads"]:
        assert reads in (CHUNKS // 2 + 1, CHUNKS // 2 + 2)


def test_memory_is_measured_over_the_whole_stream_and_every_connection(figures: dict[str, Any]) -> None:
    memory = figures["memory"]
    assert {name: figure["chunks"] for name, figure in memory.items()} == {
        "stream": 2000,
        "stream-asyncio": 2000,
        "connections": 60,
        "connections-asyncio": 60,
    }
    for figure in memory.values():
        assert [at for at, _ in figure["samples"]][-1] == figure["count"]
        assert all(rss > 0 for _, rss in figure["samples"])


def test_imports_are_measured(figures: dict[str, Any]) -> None:
    assert {"import llamastream", "from llamastream import StreamingClient"} <= set(figures["imports"])


def test_each_target_has_a_limit_and_a_verdict(figures: dict[str, Any]) -> None:
    for target in figures["targets"]:
        assert target["reached"] is (None if target["value"] is None else target["value"] <= target["limit"])
    measured = {target["target"] for target in figures["targets"] if target["reached"] is not None}
    assert "paced, sync against the floor" in measured


def test_the_published_figures_and_the_page_belong_together() -> None:
    published = json.loads((ROOT / "docs/benchmarks/client.json").read_text())
    page = (ROOT / "docs/benchmarks.md").read_text()
    sync = published["paced"]["clients"]["llamastream"]["cpu_us"]["median"]
    assert f"| **llamastream, sync** | {sync:.1f} (" in page
    assert published["machine"].keys() == {"cpu", "cores", "system", "python"}


def test_an_unknown_client_is_refused() -> None:
    done = bench("--clients=curl")
    assert done.returncode == 2
    assert "no such clients: curl" in done.stderr


# -- recovery -----------------------------------------------------------------------------------------------


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts can be imported."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.usefixtures("benchmarks")
def test_an_interval_is_that_of_students_t() -> None:
    from recovery import interval

    # Ten values with mean 5.5 and standard deviation 3.0277; 2.262 * 3.0277 / sqrt(10) = 2.1657.
    mean, low, high = interval(range(1, 11))
    assert (mean, round(low, 3), round(high, 3)) == (5.5, 3.334, 7.666)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (20, 6, 15)]
)
def test_the_interval_of_a_median_is_that_of_the_tables(count: int, low: int, high: int) -> None:
    from client import median_interval  # the ranks stand in tables of order statistics, for 95 %

    assert median_interval(range(1, count + 1)) == (low, high)


def test_what_recovery_costs_is_measured_for_chunks_and_for_streams(tmp_path: Path) -> None:
    output = tmp_path / "recovery.json"
    sizes = {"pairs": 2, "paced-chunks": 40, "burst-chunks": 200, "streams": 2}
    command = [sys.executable, str(ROOT / "benchmarks/recovery.py"), f"--output={output}"]
    command += [f"--{name}={value}" for name, value in sizes.items()] + ["--clients=llamastream,llamastream-asyncio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr  # each stream was what was sent, or it would say so
    rows = json.loads(output.read_text())
    assert [(row["client"], row["kind"]) for row in rows] == [
        (client, kind) for client in ("sync", "asyncio") for kind in ("paced", "burst", "stream")
    ]
    for row in rows:
        assert row["low_us"] <= row["difference_us"] <= row["high_us"]
        assert row["off_us"] > 0
    assert done.stdout.count("| sync |") == 3


# -- routing ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("benchmarks")
def test_the_simulated_server_loses_and_finds_prompts_as_llama_server_does() -> None:
    from routing_server import Server, Speed

    system = ((0, 0), 1000)
    one, other = (system, ((1, 0), 300)), (system, ((2, 0), 300))
    for similarity, kept, found in ((0.1, 10000, 1000), (0.9, 10000, 1300), (0.9, 0, 1000)):
        server = Server(1, Speed((1.0,), (1.0,)), kept, similarity)
        for prompt in (one, other):
            server.take(prompt, 0.0, 0)
            server.busy.clear()
        assert server.take((*one, ((1, 1), 300)), 0.0, 0) == (0, found)


@pytest.mark.usefixtures("benchmarks")
def test_the_simulated_server_takes_the_slot_that_it_is_told() -> None:
    from routing_server import Server, Speed

    server = Server(3, Speed((1.0,) * 3, (1.0,) * 3), 0, 0.1)
    assert server.take((((0, 0), 10),), 0.0, 2) == (2, 0)
    server.busy.clear()
    assert server.take((((0, 0), 10), ((0, 1), 10)), 0.0, None) == (2, 10)
