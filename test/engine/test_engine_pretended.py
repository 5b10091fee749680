"""Servers that misbehave in ways the real one cannot be made to, and builds of other ages."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llamastream.engine import EngineOptions, launch
from llamastream.engine.logs import RING_SIZE
from llamastream.errors import (
    EngineCrashedError,
    EngineMemoryError,
    EngineMissingError,
    EngineStartTimeoutError,
    UnsupportedFlagError,
)
from llamastream.types import LogRecord

Pretend = Callable[..., str]


@pytest.fixture
def run(
    pretend: Pretend, tiny_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., EngineOptions]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def make(code: str, *, age: int = 2026, **changes: object) -> EngineOptions:
        values: dict[str, object] = {"binary": pretend(code, age=age), "model": tiny_model, "start_timeout": 30.0}
        return EngineOptions(**values | changes)  # type: ignore[arg-type]

    return make


_others: set[int] = set()


@pytest.fixture(autouse=True)
def _remember_other_children() -> None:
    """Servers that other tests keep for the whole session are none of ours."""
    _others.clear()
    _others.update(children())


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)} - _others


@pytest.mark.parametrize("age", [2023, 2024, 2025, 2026])
@pytest.mark.parametrize(
    "announcement",
    [
        None,  # nothing said: the system knows where the process listens
        "main: server is listening on http://127.0.0.1:{port} - starting the main loop",
        "main: HTTP server is listening, hostname: 127.0.0.1, port: {port}, http threads: 7",
    ],
)
def test_builds_of_every_age_are_found_where_they_listen(
    run: Callable[..., EngineOptions], age: int, announcement: str | None
) -> None:
    with launch(run(f"serve({announcement!r})", age=age)) as engine:
        assert engine.alive
        assert engine.options.port > 0
        assert engine.capabilities.build == "version: 1 (pretended)"
        assert not engine.capabilities.slots_endpoint


def test_old_builds_warn_about_what_they_lack(run: Callable[..., EngineOptions]) -> None:
    with launch(run("serve()", age=2023, extra_args=("--log-jsonl",))) as engine:
        assert any("cache_ram has no effect" in warning for warning in engine.warnings)
        assert any("--log-jsonl dropped" in warning for warning in engine.warnings)


def test_the_key_goes_by_file(run: Callable[..., EngineOptions]) -> None:
    code = """
k = sys.argv[sys.argv.index('--api-key-file') + 1]
print(oct(os.stat(k).st_mode), open(k).read(), flush=True)
serve('listening on http://127.0.0.1:{port}')
"""
    with launch(run(code, api_key="s3cret-key")) as engine:
        assert any(record.message == "0o100600 ***" for record in engine.logs)


def test_a_crash_while_loading(run: Callable[..., EngineOptions]) -> None:
    with pytest.raises(EngineCrashedError, match="SIGSEGV") as caught:
        launch(run("print('loading', flush=True); os.kill(os.getpid(), 11)")).start()
    assert caught.value.exit_code == -11
    assert caught.value.log_lines == ("loading",)
    with pytest.raises(EngineMemoryError, match="SIGKILL"):
        launch(run("os.kill(os.getpid(), 9)")).start()
    with pytest.raises(EngineCrashedError, match="exit code 0"):
        launch(run("pass")).start()
    assert children() == set()


def test_the_last_words_before_the_end_are_read(run: Callable[..., EngineOptions]) -> None:
    with pytest.raises(UnsupportedFlagError, match="--bogus"):
        launch(run("sys.stderr.write('x\\n' * 5000 + 'error: invalid argument: --bogus'); sys.exit(1)")).start()


def test_not_ready_in_time(run: Callable[..., EngineOptions]) -> None:
    started = time.monotonic()
    with pytest.raises(EngineStartTimeoutError, match=r"within 0\.5 s") as caught:
        launch(run("print('still busy', flush=True); time.sleep(600)", start_timeout=0.5)).start()
    assert time.monotonic() - started < 5.0
    assert caught.value.log_lines[-1] == "still busy"
    assert children() == set()


def test_one_that_ignores_sigterm_is_killed(run: Callable[..., EngineOptions]) -> None:
    with launch(run("import signal; signal.signal(15, signal.SIG_IGN); serve()", stop_timeout=0.2)) as engine:
        pass
    assert engine.wait() == -9
    assert children() == set()


def test_what_the_server_started_itself_ends_with_it(run: Callable[..., EngineOptions]) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '600']); print('grandchild', p.pid, flush=True); serve()"
    with launch(run(code)) as engine:
        (pid,) = (int(r.message.split()[1]) for r in engine.logs if r.message.startswith("grandchild"))
        assert psutil.pid_exists(pid)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_output_is_drained_before_and_after_the_start(run: Callable[..., EngineOptions]) -> None:
    flood = "print(('y' * 99 + '\\n') * 30_000); print('z' * 3_000_000); sys.stdout.flush(); serve('listening on http://x:{port}')"
    with launch(run(flood)) as engine:
        assert len(engine.logs) <= RING_SIZE
        assert engine.alive


def test_a_cancelled_start_leaves_nothing(run: Callable[..., EngineOptions]) -> None:
    options = run("print('up', flush=True); time.sleep(600)")

    async def cancelled() -> None:
        up = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_log(_: LogRecord) -> None:
            loop.call_soon_threadsafe(up.set)

        task = asyncio.create_task(launch(options, on_log=on_log).astart())
        await asyncio.wait_for(up.wait(), 20)
        assert len(children()) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert children() == set()


def test_a_program_that_cannot_be_executed(run: Callable[..., EngineOptions]) -> None:
    options = run("serve()")
    assert options.binary is not None
    with launch(options):
        pass
    # the probe is remembered; now the interpreter in its first line is gone
    info = Path(options.binary).stat()
    with Path(options.binary).open("r+b") as file:
        file.write(b"#!/x")
    os.utime(options.binary, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(EngineMissingError, match="cannot execute"):
        launch(options).start()
    assert children() == set()
