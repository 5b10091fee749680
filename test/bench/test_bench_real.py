"""Measurements of a real llama-server, and of doubles that fail on purpose."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llamastream.bench.generator import Generator
from llamastream.bench.loop import run
from llamastream.bench.measure import Measurement, Watcher
from llamastream.bench.page import html_page
from llamastream.bench.settings import BenchSettings
from llamastream.bench.svg import Axis, Point, Series, chart
from llamastream.bench.tables import as_csv
from llamastream.client import StreamingClient
from llamastream.engine import Engine
from llamastream.errors import BenchError, LlamaStreamError
from llamastream.settings import ClientSettings
from llamastream.testing import ChaosProxy, Fault, Reset, Unavailable
from ports import free_port


def measured(url: str, watcher: Watcher | None = None, **settings: Any) -> Measurement:
    measurement = Measurement(ClientSettings(base_url=url), BenchSettings(**settings), watcher)
    run(measurement.run)
    return measurement


@pytest.mark.alone
def test_tokens_per_second_agree_with_the_servers_own(engine: Engine) -> None:
    found = measured(engine.url, concurrency="1", requests=9, repeats=1, output_tokens="1500", prompt_tokens="16")
    samples = [sample for lap in found.laps for sample in lap.samples]
    assert [sample.tokens for sample in samples] == [1500] * 9
    ratios = []
    for sample in samples:
        assert sample.client_tokens_per_second is not None
        assert sample.server_tokens_per_second is not None
        ratios.append(sample.client_tokens_per_second / sample.server_tokens_per_second)
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.03)


def test_prompts_are_as_long_as_was_asked_and_no_cache_knows_them(engine: Engine) -> None:
    for _ in range(2):  # the second time the server has seen the first
        found = measured(engine.url, concurrency="2", requests=6, repeats=1, prompt_tokens="200", output_tokens="4")
        result = found.report().loads[0]
        assert result.prompt_tokens == pytest.approx(200, rel=0.2)
        assert (result.cached_tokens or 0) < 20
        assert result.output_tokens == 4


def test_a_shared_prefix_and_turns_are_found_in_the_cache(engine: Engine) -> None:
    settings: dict[str, Any] = {"shared_prefix": 200, "turns": 3, "prompt_tokens": "16", "output_tokens": "8"}
    found = measured(engine.url, concurrency="1", requests=4, repeats=1, **settings)
    samples = found.laps[0].samples
    assert [(sample.number, sample.turn) for sample in samples] == [(n, turn) for n in range(4) for turn in range(3)]
    later = [sample for sample in samples if sample.turn]
    assert all((sample.cached_tokens or 0) > 180 for sample in later)
    prompts = [sample.prompt_tokens or 0 for sample in samples[:3]]
    assert prompts == sorted(prompts)
    assert prompts[2] > prompts[0] + 2 * 16


def test_closed_loops_keep_their_number_of_requests_running(engine: Engine) -> None:
    most: dict[str, int] = {}

    def look(generator: Generator) -> None:
        most[generator.load.label] = max(most.get(generator.load.label, 0), generator.running)

    found = measured(engine.url, Watcher(on_change=look), concurrency="1,3", requests=7, repeats=2, output_tokens="16")
    assert most == {"1 at once": 1, "3 at once": 3}
    assert [(lap.load.label, lap.repeat) for lap in found.laps] == [
        ("1 at once", 1), ("3 at once", 1), ("3 at once", 2), ("1 at once", 2),
    ]  # fmt: skip
    assert [result.requests for result in found.report().loads] == [14, 14]
    assert all(sample.started == sample.scheduled or sample.lag < 0.1 for lap in found.laps for sample in lap.samples)


def test_an_open_loop_counts_from_the_schedule_so_that_a_full_server_is_not_excused(engine: Engine) -> None:
    # far more than four slots can do: what comes last has waited for nearly all that came before it
    found = measured(
        engine.url, rate="500", arrivals="constant", requests=60, repeats=1, output_tokens="100", prompt_tokens="16"
    )
    samples = sorted(found.laps[0].samples, key=lambda sample: sample.number)
    assert [round(sample.scheduled, 6) for sample in samples] == [round(number / 500, 6) for number in range(60)]
    assert all(sample.ok for sample in samples)
    last = samples[-1].time_to_first_token
    first = samples[0].time_to_first_token
    assert last is not None
    assert first is not None
    assert last > 3 * first
    assert last > found.laps[0].seconds / 2


def test_prompts_of_a_file_are_asked_in_turn(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"Who are you?"\n{"prompt": "Once upon", "max_tokens": 3}\n')
    found = measured(engine.url, prompts=str(path), concurrency="1", requests=4, repeats=1, output_tokens="300")
    samples = found.laps[0].samples
    assert [sample.finish_reason for sample in samples] == ["stop", "length", "stop", "length"]
    assert [sample.tokens for sample in samples[1::2]] == [3, 3]


def test_broken_off_it_keeps_what_there_was_and_frees_the_slots(
    engine: Engine, slots_free: Callable[[], float]
) -> None:
    settings = BenchSettings(concurrency="3", output_tokens="200000", prompt_tokens="16", warm_up=0, repeats=1)
    measurement: Measurement

    async def main() -> None:
        task = asyncio.create_task(measurement.run())
        await asyncio.to_thread(busy.wait, 20)
        task.cancel()
        await task

    busy = threading.Event()

    def look(generator: Generator) -> None:
        if generator.running == 3:
            threading.Thread(target=wait_for_content, args=(engine.url, busy), daemon=True).start()

    measurement = Measurement(ClientSettings(base_url=engine.url), settings, Watcher(on_change=look))
    run(main)
    assert measurement.interrupted
    slots_free()
    report = measurement.report()
    assert report.interrupted
    assert {sample.error for lap in measurement.laps for sample in lap.samples} == {"Interrupted"}
    assert report.loads[0].percentiles["time_to_first_token"]["p50"].value > 0


def wait_for_content(url: str, busy: threading.Event) -> None:
    with StreamingClient(url) as client:
        while sum(slot["is_processing"] and decoded(slot) > 10 for slot in client.slots()) < 3:
            pass  # each look is a request: there is nothing else to wait for
    busy.set()


def decoded(slot: dict[str, Any]) -> int:
    following = slot.get("next_token") or [{}]
    return int((following[0] if isinstance(following, list) else following).get("n_decoded", 0))


def test_a_server_that_is_not_there_is_an_error_and_no_measurement() -> None:
    settings = ClientSettings(base_url=f"http://127.0.0.1:{free_port()}", max_retries=0)
    with pytest.raises(LlamaStreamError, match="refused"):
        run(Measurement(settings, BenchSettings(repeats=1)).run)


def test_breaks_that_were_mended_and_errors_are_counted_by_kind(engine: Engine) -> None:
    def fault(number: int, line: str) -> Fault | None:
        # 1 and 2 find out how long words are, 3 warms up
        faults: dict[int, Fault] = {5: Reset(after_events=5), 8: Unavailable(message="no")}
        return faults.get(number)

    with ChaosProxy(engine.url, fault) as proxy:
        settings = ClientSettings(base_url=proxy.url, max_retries=0, loading_patience=0)
        measurement = Measurement(settings, BenchSettings(concurrency="1", requests=5, repeats=1, output_tokens="32"))
        run(measurement.run)
    result = measurement.report().loads[0]
    assert result.recoveries == {"reattach": 1}
    assert (result.requests, result.failed, result.errors) == (5, 1, {"UnavailableError": 1})
    assert [sample.tokens for sample in measurement.laps[0].samples if sample.ok] == [32] * 4
    assert "no" in measurement.first_failure


def test_a_server_that_refuses_all_requests_ends_the_measurement_at_once(engine: Engine) -> None:
    with ChaosProxy(engine.url, lambda number, line: Unavailable(message="no") if number > 2 else None) as proxy:
        settings = ClientSettings(base_url=proxy.url, max_retries=0, loading_patience=0)
        with pytest.raises(BenchError, match=r"no request succeeds: \w+: .*no"):
            run(Measurement(settings, BenchSettings(concurrency="2", repeats=1)).run)


# -- what is given out --------------------------------------------------------------------------------------


class Outside(HTMLParser):
    """Collects what a page would fetch or run, and checks that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("script", "link", "iframe", "img", "object"):
            self.found.append(tag)
        self.found += [f"{name}={value}" for name, value in attributes if name in ("src", "href", "onload", "onclick")]


@pytest.fixture(scope="module")
def short(engine: Engine) -> Measurement:
    return measured(engine.url, concurrency="1,2", requests=8, repeats=2, output_tokens="32")


def test_the_page_has_all_plots_and_needs_nothing_from_elsewhere(short: Measurement) -> None:
    page = html_page(short.report(), short.laps)
    reader = Outside()
    reader.feed(page)
    assert reader.found == []
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    drawings = page.split("<svg class")[1:]
    assert len(drawings) == 4
    for drawing in drawings:
        root = ElementTree.fromstring("<svg class" + drawing.partition("</svg>")[0] + "</svg>")
        assert root.attrib["role"] == "img"
        assert len(list(root.iter("polyline"))) + len(list(root.iter("circle"))) >= 2
        for shape in root.iter("circle"):
            assert 0 <= float(shape.attrib["cx"]) <= 640
            assert 0 <= float(shape.attrib["cy"]) <= 300


def test_no_line_leads_from_closed_loops_to_open_ones() -> None:
    points = (Point(0, 1), Point(1, 2), Point(2, 3, fresh=True), Point(3, 4))
    drawing = chart("x", Axis("a", categories=("1", "2", "3", "4")), Axis("b"), [Series("s", points)])
    assert [line.count(",") for line in drawing.split("<polyline")[1:]] == [2, 2]
    assert chart("x", Axis("a"), Axis("b"), []) == ""


def test_what_a_server_says_of_itself_cannot_break_the_page(short: Measurement) -> None:
    import msgspec

    report = short.report()
    evil = msgspec.structs.replace(report, server=msgspec.structs.replace(report.server, model="<script>alert(1)"))
    reader = Outside()
    reader.feed(html_page(evil, short.laps))
    assert "script" not in reader.tags


def test_the_csv_file_has_a_row_for_each_request(short: Measurement) -> None:
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(as_csv(short.laps))))
    assert len(rows) == 32
    assert {row["load"] for row in rows} == {"1 at once", "2 at once"}
    assert all(float(row["time_to_first_token"]) > 0 and int(row["tokens"]) == 32 for row in rows)
    assert all(float(row["server_predicted_ms"]) > 0 for row in rows)
