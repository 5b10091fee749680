"""Searches with real llama-servers and a small model of random weights."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from llamastream.bench.halving import Dimension
from llamastream.bench.loop import run
from llamastream.bench.tune import search as searching
from llamastream.bench.tune.models import tune
from llamastream.bench.tune.result import DEFAULTS, ModelResult, Tried
from llamastream.bench.tune.search import Search, Watcher
from llamastream.bench.tune.settings import TuneSettings
from llamastream.bench.tune.space import AUTO_SLOTS
from llamastream.bench.tune.writing import write_settings
from llamastream.engine import EngineOptions, launch
from llamastream.engine.machine import cores
from llamastream.engine.probe import find_binary
from llamastream.errors import ModelFileError
from llamastream.fleet.configuration import configure
from tools.faults.large_model import write_large_model

pytestmark = pytest.mark.alone  # a search within seconds, by measurement

SMALL = TuneSettings(goal="balanced", budget=20, prompt_tokens=32, output_tokens=8, at_once=2)
EMBEDDED = EngineOptions(kind="embedded", ctx_size=512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    write_large_model(path, width=128, layers=2, context=1024)
    return str(path)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture
def nobody_left() -> Callable[[], None]:
    """A function that fails if there are processes that were not there before."""
    before = {child.pid for child in children()}

    def check() -> None:
        left = [child for child in children() if child.pid not in before]
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []

    return check


def only(**values: tuple[object, ...]) -> Callable[[tuple[Dimension, ...]], tuple[Dimension, ...]]:
    """A space in which all but these dimensions have one value."""

    def change(space: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
        return tuple(Dimension(each.name, values.get(each.name, each.values[:1])) for each in space)

    return change


def test_it_ends_in_its_time_and_serve_runs_with_what_it_wrote(
    model: str, tmp_path: Path, nobody_left: Callable[[], None]
) -> None:
    began = time.monotonic()
    result = run(lambda: tune([model], EMBEDDED, SMALL))
    spent = time.monotonic() - began
    nobody_left()
    found = result.models[0]
    longest = max(tried.figures.start + tried.figures.took for tried in found.tried if tried.figures)
    assert spent <= SMALL.budget + longest + 3
    assert {tried.part for tried in found.tried} == {"defaults", "search", "final"}
    assert sum(tried.part == "search" for tried in found.tried) >= 3
    assert found.finalists
    assert all(one.gain is not None for one in found.finalists)
    path = tmp_path / "tuned.toml"
    write_settings(result, path)
    options = configure({}, {}, environ={"LLAMASTREAM_CONFIG": str(path)}).pools[0].options
    assert options.model == model
    # never worse than the defaults: these, or what was clearly better
    assert (found.gain is not None and found.gain.clear) or "--kv-unified" in options.extra_args
    with launch(msgspec.structs.replace(options, port=0)) as engine:
        assert engine.capabilities.slots == options.parallel


@pytest.mark.parametrize("kind", ["embedded", "executable"])
def test_settings_that_the_server_refuses_are_noted_and_never_tried_again(
    model: str, kind: str, nobody_left: Callable[[], None]
) -> None:
    if kind == "executable" and find_binary() is None:
        pytest.skip("no llama-server executable here")
    # llama-server cannot read a quantised cache of values without flash attention
    space = only(threads=(1, 2), flash_attn=("off",), cache_type=("q8_0",))
    options = msgspec.structs.replace(EMBEDDED, kind=kind)
    search = Search(model, options, SMALL, 10, "n", change_space=space, allowed=lambda candidate: True)
    found = run(search.run)
    nobody_left()
    failed = [tried for tried in found.tried if tried.part == "search"]
    assert failed
    assert all(tried.figures is None and "context" in tried.reason for tried in failed)
    assert len({tried.settings for tried in failed}) == len(failed)
    assert (found.chosen_words, found.gain) == (DEFAULTS, None)
    assert "nothing but llama-server's defaults could be measured" in found.verdict


def server_of_ours(before: set[int]) -> psutil.Process | None:
    """The server that has been started since; its parent, the guard, must live to clean up."""
    for child in children():
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            if child.pid not in before and "child.py" in words and "guard" not in words:
                return child
    return None


@pytest.mark.parametrize(("fault", "says"), [(signal.SIGSTOP, "not through after"), (signal.SIGKILL, "SIGKILL")])
def test_a_server_that_hangs_or_is_killed_costs_one_trial(
    model: str, monkeypatch: pytest.MonkeyPatch, nobody_left: Callable[[], None], fault: signal.Signals, says: str
) -> None:
    monkeypatch.setattr(searching, "LEAST_PATIENCE", 3.0)
    before = {child.pid for child in children()}
    trials: list[str] = []
    threads: list[threading.Thread] = []
    over = threading.Event()

    def strike() -> None:
        while (server := server_of_ours(before)) is None:
            if over.wait(0.01):  # a poll: the system has no event for this
                return
        server.send_signal(fault)

    def on_trial(settings: str, part: str, number: int) -> None:
        trials.append(settings)
        if len(trials) == 2:
            threads.append(threading.Thread(target=strike))
            threads[0].start()

    try:
        space = only(threads=(1, 2), batch=("2048/512", "512/128"))
        watcher = Watcher(on_trial=on_trial)
        found = run(Search(model, EMBEDDED, SMALL, 15, "n", watcher, change_space=space).run)
    finally:
        over.set()
        threads[0].join()
    nobody_left()
    assert found.tried[1].figures is None
    assert any(tried.figures for tried in found.tried[2:])
    assert says in found.tried[1].reason
    assert trials.count(found.tried[1].settings) == 1


def broken_off(model: str, when: Callable[[Tried], bool]) -> ModelResult:
    """A search that is cancelled while the trial after the one that `when` finds is under way."""

    async def main() -> ModelResult:
        stopping = False

        def on_tried(tried: Tried) -> None:
            nonlocal stopping
            stopping = stopping or when(tried)

        def on_trial(settings: str, part: str, number: int) -> None:
            if stopping:
                asyncio.get_running_loop().call_later(0.1, task.cancel)

        watcher = Watcher(on_trial=on_trial, on_tried=on_tried)
        task = asyncio.create_task(Search(model, EMBEDDED, SMALL, 60, "n", watcher).run())
        return await task

    return run(main)


def test_broken_off_it_gives_the_best_so_far_and_leaves_no_process(model: str, nobody_left: Callable[[], None]) -> None:
    found = broken_off(model, lambda tried: tried.part == "defaults")
    nobody_left()
    assert found.interrupted
    assert all(one.gain is None for one in found.finalists)
    assert len(found.tried) >= 1
    assert found.defaults.score > 0
    assert found.chosen_words == DEFAULTS


def test_of_several_models_the_smaller_need_not_be_measured(model: str, tmp_path: Path) -> None:
    larger = tmp_path / "larger.gguf"
    write_large_model(larger, width=192, layers=2, context=1024)
    settings = msgspec.structs.replace(SMALL, budget=30, min_tokens_per_second=1.0, goal="latency")
    result = run(lambda: tune([model, str(larger)], EMBEDDED, settings))
    assert result.wanted == str(larger)
    assert result.skipped == (model,)


def test_a_model_that_cannot_be_loaded_is_its_own_error(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match="no usable GGUF file"):
        run(lambda: tune([str(path)], EMBEDDED, SMALL))


def test_the_defaults_are_those_that_a_server_chooses_by_itself(model: str) -> None:
    """Of an executable that is told its model alone."""
    import re
    import subprocess

    binary = find_binary()
    if binary is None:
        pytest.skip("no llama-server executable here")
    process = subprocess.Popen(
        [binary.path, "--model", model, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if "listening on" in line:
                break
    finally:
        process.kill()
        process.communicate()
    threads = re.search(r"n_threads = (\d+)", text)
    slots = re.search(r"n_slots = (\d+)", text)
    assert threads is not None, text
    assert slots is not None, text
    assert int(threads[1]) == cores().physical
    assert int(slots[1]) == AUTO_SLOTS
    assert re.search(r"kv_unified = '?true", text), text
