"""A fleet from its start to its end, with real servers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import psutil
import pytest

from fleets import quick, running
from llamastream import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.errors import EngineMemoryError, ModelFileError, SettingError
from llamastream.fleet import Fleet, FleetSettings, Pool

QUESTION = [{"role": "user", "content": "Who are you?"}]


def test_instances_are_ready_and_answer_alike() -> None:
    with running(instances=3) as watched:
        backends = watched.fleet.snapshot()
        assert [backend.id for backend in backends] == ["demo-0", "demo-1", "demo-2"]
        assert all(backend.routable and backend.models == ("demo",) and backend.slots == 4 for backend in backends)
        assert len({backend.url for backend in backends}) == len({backend.pid for backend in backends}) == 3
        answers = set()
        for backend in backends:
            with StreamingClient(backend.url, temperature=0) as client:
                answers.add(client.chat(QUESTION).text)
        assert len(answers) == 1
        assert answers.pop()
        for id_ in ("demo-0", "demo-1", "demo-2"):
            assert watched.states(id_) == ["starting", "loading", "ready"]
    assert {backend.state for backend in watched.fleet.snapshot()} == {"stopped"}
    assert {backend.pid for backend in watched.fleet.snapshot()} == {0}


def test_a_report_says_what_an_instance_does() -> None:
    with running(instances=1) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url, temperature=0) as client:
            stream = client.stream_chat(
                [{"role": "user", "content": "Count to a hundred."}], ignore_eos=True, max_tokens=8000
            )
            texts = iter(stream)
            next(texts)
            watched.wait_for(lambda: watched.fleet.status()[0].in_flight == 1, "a request in flight")
            watched.wait_for(lambda: watched.fleet.status()[0].tokens_per_second > 0, "a speed")
            stream.close()
            watched.wait_for(lambda: watched.fleet.status()[0].in_flight == 0, "a free slot")
        report = watched.fleet.status()[0]
        assert report.requests == 1
        assert report.rss_bytes > 1 << 20
        assert report.pid == watched.fleet.snapshot()[0].pid
        assert (report.restarts, report.last_exit, report.state) == (0, None, "ready")
        assert report.start_seconds > 0
        assert any("listening" in record.message for record in watched.fleet.logs("demo-0"))


def test_an_instance_whose_slots_are_all_taken_is_busy() -> None:
    with (
        running(EngineOptions(parallel=1), instances=1) as watched,
        StreamingClient(watched.fleet.snapshot()[0].url, temperature=0) as client,
    ):
        stream = client.stream_chat(QUESTION, ignore_eos=True, max_tokens=8000)
        texts = iter(stream)
        next(texts)
        watched.wait_state(0, "busy")
        assert watched.fleet.snapshot()[0].routable
        stream.close()
        watched.wait_state(0, "ready")


def test_several_models_have_their_own_counts_and_names() -> None:
    pools = [
        Pool(name="small", options=EngineOptions(alias="small", parallel=1)),
        Pool(name="large", options=EngineOptions(alias="large", parallel=2), instances=2),
    ]
    with running(pools) as watched:
        backends = watched.fleet.snapshot()
        assert [(b.id, b.models, b.slots) for b in backends] == [
            ("small-0", ("small",), 1),
            ("large-0", ("large",), 2),
            ("large-1", ("large",), 2),
        ]


def test_a_start_that_fails_raises_what_an_engine_would_and_leaves_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "model.gguf"
    bad.write_bytes(b"no model")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    pools = [Pool(name="good", options=EngineOptions()), Pool(name="bad", options=EngineOptions(model=str(bad)))]
    with pytest.raises(ModelFileError, match="is no usable GGUF file"):
        Fleet(pools, settings=quick()).start()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_more_than_the_memory_holds_is_refused_before_anything_starts() -> None:
    fleet = Fleet(EngineOptions(cache_ram=1 << 30), instances=2, settings=quick())
    with pytest.raises(EngineMemoryError, match=r"2 instances need .* prompt cache.*memory_check"):
        fleet.start()
    assert fleet.snapshot() == ()


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(SettingError, match="2 models with the name 'a'"):
        Fleet([Pool(name="a", options=EngineOptions()), Pool(name="a", options=EngineOptions())])
    with pytest.raises(SettingError, match="port 5001 would be used by 2"):
        Fleet(
            [
                Pool(name="a", options=EngineOptions(port=5000), instances=2),
                Pool(name="b", options=EngineOptions(port=5001)),
            ]
        )
    with pytest.raises(SettingError, match="allowed: 1 to 256"):
        Fleet(instances=1000)
    with pytest.raises(SettingError, match="there is no instance 'x'; there are: none"):
        Fleet().restart("x")


def test_a_fleet_starts_once() -> None:
    with running(instances=1) as watched, pytest.raises(SettingError, match="make another one"):
        watched.fleet.start()


def test_nothing_is_left_open() -> None:
    def count() -> tuple[int, int]:
        return psutil.Process().num_fds(), threading.active_count()

    with running():
        pass
    before = count()
    for _ in range(3):
        with running():
            pass
    assert count() == before


def test_it_works_in_coroutines_and_a_cancelled_start_leaves_nothing() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    async def use() -> str:
        async with Fleet(settings=quick()) as fleet:
            return fleet.snapshot()[0].state

    async def cancel() -> None:
        task = asyncio.create_task(Fleet(instances=2, settings=quick()).astart())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert asyncio.run(use()) == "ready"
    asyncio.run(cancel())
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_subscribers_hear_of_changes_until_they_leave() -> None:
    heard = threading.Event()
    with running(instances=1) as watched:
        leave = watched.fleet.subscribe(heard.set)
        watched.fleet.drain("demo-0").done.result(10)
        assert heard.wait(10)
        assert not watched.fleet.snapshot()[0].routable
        leave()
        heard.clear()
        watched.fleet.undrain("demo-0").done.result(10)
        assert watched.fleet.snapshot()[0].routable
        assert not heard.is_set()


def test_settings_of_sizes_and_times() -> None:
    settings = FleetSettings(memory_limit="50%", memory_growth="100MiB", restart_at="04:30")
    policy = settings.memory_policy(8 << 30)
    assert policy.limit == 4 << 30
    assert policy.slope_limit == pytest.approx((100 << 20) / 3600)
    assert settings.schedule.at is not None
    assert (settings.schedule.at.hour, settings.schedule.at.minute) == (4, 30)
