"""Answers on disk: what survives, within which bound, for whose eyes, and what becomes of requests when it fails."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wires import Heard, ask

from fleets import Watched, running
from gateways import Running, serving
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.gateway import GatewaySettings, create_app
from llamastream.gateway.answer_file import NAME, AnswerFile
from llamastream.gateway.answers import Answer, AnswerMemory
from polling import wait_for

ASKED = {"messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=4), instances=1) as watched:
        yield watched


def on_disk(directory: Path) -> GatewaySettings:
    return GatewaySettings(response_cache=True, response_cache_dir=str(directory))


def outcome(answer: Heard) -> str:
    found = re.search(rb"x-llamastream-cache: (\w+)", answer.head)
    return found[1].decode() if found else ""


def entries(gateway: Running) -> int:
    samples = gateway.gateway.sharing.samples()
    return next(int(each.value) for each in samples if (each.name, *each.labels) == ("response_cache_entries", "disk"))


def answer(size: int, stored: float | None = None) -> Answer:
    """One that no compression makes smaller."""
    return Answer(True, os.urandom(size), 1, time.time() if stored is None else stored)


def test_the_cache_survives_a_restart_of_the_gateway(fleet: Watched, tmp_path: Path) -> None:
    settings = on_disk(tmp_path / "cache")
    with serving(fleet.fleet, settings) as gateway:
        first = ask(gateway.url, body=ASKED)
        assert outcome(first) == "miss"
        wait_for(lambda: entries(gateway) == 1)
    with serving(fleet.fleet, settings) as gateway:
        again = ask(gateway.url, body=ASKED)
        assert (outcome(again), again.joined()) == ("hit", first.joined())
        assert gateway.gateway.lanes.admitted == 0


def test_nobody_else_can_read_it(fleet: Watched, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "cache"
    before = os.umask(0)
    try:
        with serving(fleet.fleet, on_disk(directory)) as gateway:
            ask(gateway.url, body=ASKED)
            wait_for(lambda: entries(gateway) == 1)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert modes[NAME] == 0o600
    assert set(modes.values()) == {0o600}


def test_a_directory_that_cannot_be_used_is_told_at_the_start(fleet: Watched, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SettingError, match="response_cache_dir = .* cannot be used"):
        create_app(fleet.fleet, on_disk(file))
    link = tmp_path / "linked"
    link.mkdir()
    (link / NAME).symlink_to(file)
    with pytest.raises(SettingError, match="cannot be used"):
        create_app(fleet.fleet, on_disk(link))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("no database", "is damaged, is thrown away, and begins anew: file is not a database"),
        ("a page", "is damaged, is thrown away, and begins anew: "),
        ("a body", "fails, and goes on without this answer: "),
    ],
)
def test_a_damaged_file_costs_a_warning_and_no_request(
    fleet: Watched, tmp_path: Path, damage: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, path = on_disk(tmp_path), tmp_path / NAME
    with serving(fleet.fleet, settings) as gateway:
        first = ask(gateway.url, body=ASKED)
        wait_for(lambda: entries(gateway) == 1)
    if damage == "no database":
        path.write_bytes(b"x" * 10_000)
    elif damage == "a page":
        content = path.read_bytes()
        path.write_bytes(content[:1024] + os.urandom(len(content) - 1024))
    else:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE answers SET body = substr(body, 1, 50)")
        database.close()
    with caplog.at_level(logging.WARNING, "llamastream.gateway"), serving(fleet.fleet, settings) as gateway:
        for _ in range(2):
            found = ask(gateway.url, body=ASKED)
            assert (found.status, found.joined()) == (200, first.joined())
        wait_for(lambda: entries(gateway) == 1)  # it is used again
    told = [record for record in caplog.records if "response cache" in record.getMessage()]
    assert len(told) == 1
    assert says in told[0].getMessage()
    with serving(fleet.fleet, settings) as gateway:
        assert outcome(ask(gateway.url, body=ASKED)) == "hit"


FULL = """
import asyncio, os, resource, sys
from llamastream.gateway.answer_file import AnswerFile
from llamastream.gateway.answers import Answer

async def work():
    file = AnswerFile(sys.argv[1], 1 << 30, 3600.0)
    await file.open()
    file.put(b"first", Answer(True, b"kept", 1, 2e9))
    assert (await file.get(b"first")).body == b"kept"
    size = os.path.getsize(sys.argv[1] + "/answers.sqlite3-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, size + 4096))
    for number in range(5):
        file.put(b"%d" % number, Answer(True, os.urandom(200_000), 1, 2e9))
        assert await file.get(b"%d" % number) is None
    assert file.errors >= 5, file.errors
    assert (await file.get(b"first")).body == b"kept"
    await file.close()

asyncio.run(work())
"""


def test_a_full_disk_costs_the_entry_and_one_warning(tmp_path: Path) -> None:
    """The system itself refuses to let any file grow: what was there stays readable, and nothing raises."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("the response cache in") == 1


def test_the_file_stays_within_its_bound_and_the_least_used_go(tmp_path: Path) -> None:
    limit = 2 << 20

    async def work() -> None:
        file = AnswerFile(str(tmp_path), limit, 3600.0)
        for number in range(200):
            file.put(b"%d" % number, answer(50_000))
            assert await file.get(b"%d" % number) is not None
            assert (tmp_path / NAME).stat().st_size <= limit
        assert await file.get(b"0") is None
        assert 20 < file.entries < 40
        assert file.used <= limit
        assert file.errors == 0
        file.put(b"large", answer(limit))
        assert await file.get(b"large") is None
        await file.close()
        assert (tmp_path / NAME).stat().st_size <= limit

    asyncio.run(work())


def test_what_is_too_old_is_gone(tmp_path: Path) -> None:
    async def work() -> None:
        file = AnswerFile(str(tmp_path), 1 << 20, 100.0)
        file.put(b"old", answer(10, time.time() - 101))
        file.put(b"young", answer(10, time.time() - 50))
        assert await file.get(b"old") is None
        assert await file.get(b"young") is not None
        file.put(b"another", answer(10))
        await file.get(b"another")
        assert file.entries == 2
        await file.close()

    asyncio.run(work())


def test_two_gateways_may_use_one_directory(tmp_path: Path) -> None:
    async def work() -> None:
        files = [AnswerFile(str(tmp_path), 1 << 22, 100.0) for _ in range(2)]
        for number in range(50):
            files[number % 2].put(b"%d" % number, Answer(True, b"%d" % number, 1, time.time()))
        for file in files:
            await file.open()  # after all that was to be written
        for number in range(50):
            found = await files[1 - number % 2].get(b"%d" % number)
            assert found is not None
            assert found.body == b"%d" % number
        assert [file.errors for file in files] == [0, 0]
        for file in files:
            await file.close()

    asyncio.run(work())


def test_a_form_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / NAME) as database:
        database.execute("CREATE TABLE answers (key, something)")
        database.execute("PRAGMA user_version=99")
    database.close()

    async def work() -> None:
        file = AnswerFile(str(tmp_path), 1 << 20, 100.0)
        assert await file.get(b"x") is None
        file.put(b"x", answer(10))
        assert await file.get(b"x") is not None
        assert file.errors == 0
        await file.close()
        assert await file.get(b"x") is None

    asyncio.run(work())


def test_memory_is_bounded_and_the_least_used_go() -> None:
    memory = AnswerMemory(100_000)
    for number in range(100):
        memory.put(b"%d" % number, answer(5000))
        assert memory.used <= 100_000
        memory.get(b"0")
    assert memory.get(b"0") is not None
    assert memory.get(b"1") is None
    assert len(memory) == 18
    memory.put(b"large", answer(50_000))
    assert memory.get(b"large") is None
