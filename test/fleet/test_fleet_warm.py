"""Prompt caches that outlive a planned restart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fleets import Watched, running
from llamastream import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.events import SlotsRestored
from llamastream.fleet.workplace import Workplace, cache_home, sweep

SYSTEM = "You are patient. " * 200
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Who are you?"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached_after_restart(watched: Watched) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them were in the cache, for the same request after a restart."""
    with StreamingClient(watched.fleet.snapshot()[0].url, temperature=0) as client:
        first = client.chat(MESSAGES)
        assert watched.fleet.restart("demo-0").done.result(60)
        second = client.chat(MESSAGES)
    assert second.text == first.text
    assert second.stats.prompt_tokens is not None
    return second.stats.prompt_tokens, second.stats.cached_tokens or 0


def test_a_planned_restart_keeps_the_prompt_cache() -> None:
    with running(instances=1, warm=True) as watched:
        prompt, cached = cached_after_restart(watched)
        assert cached >= prompt - 1
        restored = next(event for event in watched.events if isinstance(event, SlotsRestored))
        assert restored.tokens >= prompt
        assert restored.size > 0
        assert not list((cache_home() / "llamastream" / "slots").rglob("*.bin"))
    assert not list((cache_home() / "llamastream" / "slots").iterdir())


def test_it_can_be_switched_off() -> None:
    with running(instances=1, warm=False) as watched:
        _, cached = cached_after_restart(watched)
        assert cached == 0
    assert not (cache_home() / "llamastream").exists()


def test_saved_slots_take_no_more_space_than_allowed() -> None:
    with running(instances=1, warm=True, warm_space="1KiB") as watched:
        _, cached = cached_after_restart(watched)
        assert cached == 0
        assert not list((cache_home() / "llamastream" / "slots").rglob("*.bin"))


def test_a_disk_that_takes_nothing_costs_the_cache_and_nothing_else() -> None:
    with running(instances=1, warm=True) as watched:
        # the server cannot write there any more, as on a full disk
        directory = next((cache_home() / "llamastream" / "slots").glob("*/demo-0"))
        shutil.rmtree(directory)
        _, cached = cached_after_restart(watched)
        assert cached == 0
        assert watched.fleet.snapshot()[0].state == "ready"


def test_other_options_begin_with_an_empty_cache() -> None:
    with running(instances=1, warm=True) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url, temperature=0) as client:
            client.chat(MESSAGES)
            (order,) = watched.fleet.reload(EngineOptions(ctx_size=4096))
            assert order.done.result(60)
            assert not client.chat(MESSAGES).stats.cached_tokens
            assert client.slots()[0]["n_ctx"] == 4096
        assert not any(isinstance(event, SlotsRestored) for event in watched.events)


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    living = Workplace(tmp_path, "living")
    dead = tmp_path / "dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "slot-0.bin").write_bytes(b"x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "living"]
    assert living.path.stat().st_mode & 0o777 == 0o700
    living.close()
    assert not living.path.exists()
