"""`llamastream serve` as a process, everything that it says, and commands to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from commandline import COMMAND, ROOT, run
from llamastream.client import StreamingClient
from ports import free_ports

PATIENCE = 60.0
"""Seconds: only a machine that is very busy takes so long."""


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def environment(home: Path, runtime: Path) -> dict[str, str]:
    """An environment without settings, with an empty HOME and a runtime directory of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA", "XDG_", "PYTHONUNBUFFERED"))}
    return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200", "NO_COLOR": "1"}


@contextmanager
def busy(url: str) -> Iterator[None]:
    """A slot works on a long answer, slowly, until the block ends: the probabilities of all tokens cost time."""
    with StreamingClient(url).stream_completion("a", max_tokens=8000, ignore_eos=True, logprobs=600) as stream:
        pieces = iter(stream)
        next(pieces)
        yield


class Serving:
    """A running `serve --json`: its events as they come, and its stderr at the end."""

    def __init__(self, environ: dict[str, str], *arguments: str, **options: Any) -> None:
        self.environ = environ
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        engine = () if "--upstream" in arguments else ("--kind", "embedded", "--threads", "1")
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--json", *engine, *arguments],
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, **options,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def expect(self, kind: str, since: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for an event of a kind with these fields, behind the first `since` events."""

        def found() -> dict[str, Any] | None:
            for event in self.events[since:]:
                if event["event"] == kind and all(event.get(name) == value for name, value in fields.items()):
                    return event
            return None

        end = time.monotonic() + PATIENCE
        with self._changed:
            while (event := found()) is None:
                assert not self._ended, f"it ended before {kind} {fields}: {self.events[-3:]} {self.stderr()}"
                left = end - time.monotonic()
                assert left > 0, f"{kind} {fields} did not come, but {self.events[-3:]}"
                self._changed.wait(left)
            return event

    def ready(self) -> dict[str, Any]:
        return self.expect("ready")

    def command(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Another command in the same environment."""
        return run(self.environ, *arguments, timeout=timeout)

    def status(self) -> dict[str, Any]:
        done = self.command("status", "--json")
        assert done.returncode in (0, 3), done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    def wait_status(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status until it is so."""
        end = time.monotonic() + PATIENCE
        while not condition(found := self.status()):
            assert time.monotonic() < end, found
        return found

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return "" if self.process.stderr.closed else self.process.stderr.read().decode()

    def close(self) -> None:
        """End it, if it still runs, and see that no server of it is left."""
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


@contextmanager
def serving(environ: dict[str, str], *arguments: str, **options: Any) -> Iterator[Serving]:
    """`serve --json`, with the embedded engine, from its start until it is ended here at the latest."""
    started = Serving(environ, *arguments, **options)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def fleet_of_two(environ: dict[str, str], *arguments: str) -> Iterator[Serving]:
    """Two servers with the demo model that are ready, and looked at often."""
    port = str(free_ports(2))
    quick = ("--look-interval", "0.2", "--restart-delay", "0.1", "--no-warm")
    with serving(environ, "--instances", "2", "--port", port, *quick, *arguments) as started:
        started.ready()
        yield started
