"""The parts of a fleet that need no server: sizes, times, plans, counts, and what is read from the system."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from llamastream.engine import EngineOptions
from llamastream.engine.needs import need_of
from llamastream.errors import SettingError
from llamastream.fleet.behind import SIMILARITY, behind
from llamastream.fleet.footprint import Footprint, parse_status, private_memory
from llamastream.fleet.pools import as_pools, plan, pool_name
from llamastream.fleet.questions import decoded, in_flight, parse_load
from llamastream.fleet.settings import FleetSettings, Pool, parse_time
from llamastream.fleet.tally import Tally
from llamastream.settings import load
from llamastream.settings.sizes import parse_size
from llamastream.types import LogRecord


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024), ("1K", 1024), ("1KiB", 1024), ("6GiB", 6 << 30), ("500 MB", 500 << 20), ("1.5g", 3 << 29),
        ("80%", 800), ("100%", 1000), ("0", None), ("101%", None), ("-1", None), ("much", None), ("", None),
        ("1PB", None),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text, 1000) == size


@pytest.mark.parametrize(
    ("text", "time"),
    [("04:30", datetime.time(4, 30)), ("4:30", datetime.time(4, 30)), ("24:00", None), ("12:60", None), ("noon", None)],
)
def test_times(text: str, time: datetime.time | None) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("memory_limit", "lots", "6GiB"),
        ("restart_at", "25:00", "04:30"),
        ("instances", 0, "instances"),
        ("look_interval", 0.001, "look_interval"),
        ("crash_limit", -1, "crash_limit"),
    ],
)
def test_wrong_settings_say_what_is_allowed(name: str, value: object, part: str) -> None:
    with pytest.raises(SettingError, match=part):
        load(FleetSettings, given={name: value}, environ={}, table={})


def test_threads_ports_and_caches_are_shared_out() -> None:
    pools = [
        Pool(name="a", options=EngineOptions(model="a.gguf", port=9000), instances=2),
        Pool(name="b", options=EngineOptions(model="b.gguf", port=9000)),
    ]
    plans = plan(pools, cores=8, cache_ram=3000)
    assert [(each.id, each.options.port, each.options.threads, each.options.cache_ram) for each in plans] == [
        ("a-0", 9000, 3, 1000),
        ("a-1", 9001, 3, 1000),
        ("b-0", 9002, 2, 1000),
    ]


def test_a_single_instance_is_left_as_it_is() -> None:
    options = EngineOptions(model="a.gguf", port=9000)
    assert plan([Pool(name="a", options=options)], cores=8, cache_ram=3000)[0].options == options


def test_what_was_chosen_is_not_overruled() -> None:
    options = EngineOptions(model="a.gguf", threads=7, cache_ram=5)
    plans = plan([Pool(name="a", options=options, instances=2)], cores=8, cache_ram=3000)
    assert {(each.options.threads, each.options.cache_ram) for each in plans} == {(7, 5)}


def test_sockets_of_several_instances_differ() -> None:
    options = EngineOptions(socket="/run/x.sock")
    plans = plan([Pool(name="a", options=options, instances=2)], cores=2, cache_ram=1)
    assert [each.options.socket for each in plans] == ["/run/x.sock", "/run/x-1.sock"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (EngineOptions(), "demo"),
        (EngineOptions(model="/models/Qwen 3.gguf"), "Qwen-3"),
        (EngineOptions(hf="user/Model-GGUF:Q4_K_M"), "Model-GGUF"),
        (EngineOptions(alias="chat"), "chat"),
    ],
)
def test_names_of_models(options: EngineOptions, name: str) -> None:
    assert pool_name(options) == name


def test_pools_come_from_whatever_is_given() -> None:
    options = EngineOptions()
    assert as_pools(None, 2) == (Pool(name="demo", options=options, instances=2),)
    assert as_pools({"x": options}, 3) == (Pool(name="x", options=options, instances=3),)
    with pytest.raises(SettingError, match="a mapping of names"):
        as_pools(["x"], 1)  # type: ignore[list-item]  # on purpose
    with pytest.raises(SettingError, match="name 'a b' is not allowed"):
        plan([Pool(name="a b", options=options)], cores=1, cache_ram=1)


def test_memory_that_is_private() -> None:
    assert parse_status("VmRSS:\t  999 kB\nRssAnon:\t  100 kB\nRssFile:\t 50 kB\nVmSwap:\t  20 kB\n") == 120 * 1024
    assert private_memory(os.getpid()) > 1 << 20
    assert private_memory(2**22 + 1) == 0
    footprint = Footprint(os.getpid())
    assert footprint.memory() >= private_memory(os.getpid()) // 2
    assert (footprint.cpu_seconds() or 0) > 0
    gone = Footprint(2**22 + 1)
    assert (gone.memory(), gone.cpu_seconds()) == (0, None)


def test_what_metrics_and_slots_say() -> None:
    text = "# HELP x\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 3\nllamacpp:other 9\n"
    assert parse_load(text) == 5
    assert parse_load("") == 0
    slots: list[dict[str, Any]] = [
        {"is_processing": True, "next_token": [{"n_decoded": 5}]},
        {"is_processing": True, "next_token": {"n_decoded": 2}},
        {"is_processing": True},
        {"is_processing": False, "next_token": [{"n_decoded": 50}]},
    ]
    assert (in_flight(slots), decoded(slots)) == (3, 7)


def record(message: str) -> LogRecord:
    return LogRecord(time=0.0, level="info", message=message)


def test_requests_and_tokens_are_counted_from_the_log() -> None:
    tally = Tally()
    tally.count(record("id  3 | task 2 | processing task, is_child = 0"))
    tally.count(record("id  3 | task 2 | prompt eval time =       1.42 ms /    13 tokens (    0.11 ms per token)"))
    tally.count(record("id  3 | task 2 |        eval time =      18.40 ms /    97 tokens (    0.19 ms per token)"))
    tally.count(record("id  3 | task 2 | stop processing: n_tokens = 109, truncated = 0"))
    assert (tally.requests, tally.tokens) == (1, 97)


def test_speed_is_averaged_and_never_negative() -> None:
    tally = Tally()
    assert tally.tokens_per_second(0.0, 0) == 0.0
    assert tally.tokens_per_second(2.0, 100) == 50.0
    # the request ended, but its log line is not read yet
    assert tally.tokens_per_second(4.0, 0) == 25.0
    for second in range(5, 12):
        last = tally.tokens_per_second(float(second), 0)
    assert last == 0.0


def test_what_a_server_needs_is_estimated() -> None:
    small, large = need_of("a", EngineOptions(cache_ram=100)), need_of("b", EngineOptions(cache_ram=100, parallel=8))
    assert small.weights == large.weights > 1 << 20
    assert large.kv_cache == 2 * small.kv_cache > 0
    assert small.prompt_cache == 100 << 20


def test_servers_behind_a_gateway_keep_what_their_slots_lose(tmp_path: Path) -> None:
    options = [EngineOptions(), EngineOptions(slot_prompt_similarity=0.2), EngineOptions(cache_ram=0)]
    made = behind([Pool(name=f"m{number}", options=each) for number, each in enumerate(options)], tmp_path)
    assert [pool.options.slot_prompt_similarity for pool in made] == [SIMILARITY, 0.2, None]
