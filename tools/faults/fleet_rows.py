"""Faults of whole servers under a supervisor: how often it came back right, and how long that took."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from llamastream.backends import InstanceState
from llamastream.client import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.engine.demo import demo_model_path
from llamastream.errors import LlamaStreamError
from llamastream.events import FleetEvent, InstanceChanged, InstanceWarning
from llamastream.fleet import Fleet, FleetSettings
from tools.faults.large_model import write_large_model

QUESTION = [{"role": "user", "content": "Tell me a story."}]
STREAMS = 20
PATIENCE = 90.0

CHILD = """
import sys, time
from llamastream import Fleet
with Fleet(instances=2) as fleet:
    print(*(backend.pid for backend in fleet.snapshot()), flush=True)
    time.sleep(600)
"""


class FleetRow(Struct):
    """One line of the table: what was done, how often, how often it ended as it should, and the seconds it took."""

    fault: str
    wanted: str
    tried: int = 0
    right: int = 0
    seconds: list[float] = []
    notes: str = ""
    details: list[str] = []

    @property
    def good(self) -> bool:
        return self.tried > 0 and self.right == self.tried

    def count(self, right: bool, seconds: float | None = None, detail: str = "") -> None:
        self.tried += 1
        self.right += right
        if seconds is not None:
            self.seconds.append(seconds)
        if not right:
            self.details.append(detail or "not as wanted")


class Supervised:
    """A fleet, and what it says."""

    def __init__(self, options: EngineOptions | None = None, instances: int = 2, **settings: Any) -> None:
        self.events: list[FleetEvent] = []
        self._changed = threading.Condition()
        chosen = FleetSettings(**{"look_interval": 0.2, "restart_delay": 0.1, "warm": False, **settings})
        self.fleet = Fleet(options, instances=instances, settings=chosen, listeners=[self._hear])

    def _hear(self, event: FleetEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
        end = time.monotonic() + seconds
        with self._changed:
            while not condition():
                if time.monotonic() > end:
                    return False
                self._changed.wait(0.05)
        return True

    def state(self, index: int = 0) -> InstanceState:
        return self.fleet.snapshot()[index].state

    def pid(self, index: int = 0) -> int:
        return self.fleet.snapshot()[index].pid

    def back(self, generation: int, index: int = 0) -> bool:
        """Wait until it is ready again, with another process, and really answers."""
        now = self.fleet.snapshot
        if not self.wait(lambda: now()[index].generation > generation and now()[index].state == "ready"):
            return False
        with StreamingClient(now()[index].url, temperature=0) as client:
            return bool(client.chat(QUESTION, max_tokens=4).text)

    def said(self, topic: str) -> bool:
        return any(isinstance(event, InstanceWarning) and event.topic == topic for event in self.events)

    def went_through(self, state: InstanceState) -> list[InstanceChanged]:
        return [event for event in self.events if isinstance(event, InstanceChanged) and event.after == state]

    def __enter__(self) -> Supervised:
        self.fleet.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fleet.stop(drain=False)


Measure = Callable[[Path, int], FleetRow]


def _killed_while(state: InstanceState) -> Measure:
    return lambda directory, thin: killed(state, max(2, 20 // thin))


_STATES: tuple[InstanceState, ...] = ("starting", "loading", "ready", "busy", "draining", "wedged")

ROWS: dict[str, Measure] = {
    **{f"kill-{state}": _killed_while(state) for state in _STATES},
    "frozen": lambda directory, thin: frozen(max(1, 5 // thin)),
    "prefill": lambda directory, thin: long_prefill(directory, 1),
    "sigterm": lambda directory, thin: minds_no_sigterm(max(1, 5 // thin)),
    "port": lambda directory, thin: port_taken(max(1, 5 // thin)),
    "garbage": lambda directory, thin: garbage(directory, max(1, 5 // thin)),
    "disk": lambda directory, thin: full_disk(directory, max(1, 3 // thin)),
    "leak": lambda directory, thin: leak(max(1, 3 // thin)),
    "rolling": lambda directory, thin: rolling(max(1, 10 // thin)),
    "supervisor": lambda directory, thin: supervisor_killed(max(1, 10 // thin)),
    "cycles": lambda directory, thin: cycles(max(10, 1000 // thin)),
}
"""Each row by name: takes a directory to work in, and by how much to repeat less often."""


def killed(state: InstanceState, times: int) -> FleetRow:
    row = FleetRow(f"kill -9 while {state}", "ready again, and answers")
    options = EngineOptions(parallel=1)
    with Supervised(options, 1, wedge_after=0.3, canary_timeout=0.3, crash_limit=0, max_restart_delay=0.1) as there:
        for _ in range(times):
            generation = there.fleet.snapshot()[0].generation
            with _in_state(there, state) as pid:
                began = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            row.count(there.back(generation), time.monotonic() - began, str(there.fleet.status()))
    return row


@contextlib.contextmanager
def _in_state(there: Supervised, state: InstanceState) -> Iterator[int]:
    """The process to kill, at the moment when the instance is in a state."""
    caught: list[int] = []

    def look() -> bool:
        if not caught and there.state() == state:
            children = [child.pid for child in psutil.Process().children()] if state == "starting" else []
            caught.append(there.pid() or (children[0] if children else 0))
        return bool(caught)

    def tell() -> None:
        look()

    with StreamingClient(there.fleet.snapshot()[0].url, recovery="off") as client:
        stream = client.stream_chat(QUESTION, ignore_eos=True, max_tokens=8000)
        if state in ("busy", "draining"):
            next(texts := iter(stream))
        leave = there.fleet.subscribe(tell)
        if state in ("starting", "loading", "draining"):
            there.fleet.restart("demo-0")
        elif state == "wedged":
            os.kill(there.pid(), signal.SIGSTOP)
        there.wait(look)
        leave()
        pid = caught[0] or _guard(there)
        yield pid
        if state in ("busy", "draining"):
            with contextlib.suppress(LlamaStreamError):
                for _ in texts:
                    pass


def _guard(there: Supervised) -> int:
    """The guard of a start that has no process yet."""
    there.wait(psutil.Process().children, 5)
    found = psutil.Process().children()
    return found[0].pid if found else there.pid()


def frozen(times: int) -> FleetRow:
    row = FleetRow("SIGSTOP, default settings", "seen within 15 s, replaced")
    settings = FleetSettings()
    with Supervised(look_interval=settings.look_interval) as there:
        for _ in range(times):
            generation = there.fleet.snapshot()[0].generation
            began = time.monotonic()
            os.kill(there.pid(), signal.SIGSTOP)
            there.wait(lambda: there.state() in ("wedged", "restarting"))
            seen = time.monotonic() - began
            row.count(there.back(generation) and seen < 15.0, seen, f"seen after {seen:.1f} s")
    row.notes = "seconds until it was seen"
    return row


def long_prefill(directory: Path, times: int) -> FleetRow:
    row = FleetRow("a prefill of 30 s, default settings", "no alarm")
    model = directory / "large.gguf"
    write_large_model(model, width=1024, layers=12)
    settings = FleetSettings()
    options = EngineOptions(model=str(model), parallel=1, ctx_size=8192)
    with Supervised(options, 1, look_interval=settings.look_interval) as there:
        for number in range(times):
            with StreamingClient(there.fleet) as client:
                result = client.complete(f"{number} " + "word " * 6000, max_tokens=2)
            seconds = (result.timings.prompt_ms if result.timings else 0) / 1e3
            calm = not there.went_through("wedged") and there.fleet.snapshot()[0].generation == 1
            row.count(calm and seconds >= 30, seconds, f"prefill of {seconds:.0f} s, calm: {calm}")
    model.unlink()
    row.notes = "seconds of prefill"
    return row


def minds_no_sigterm(times: int) -> FleetRow:
    row = FleetRow("a server that does not mind SIGTERM", "killed after `stop_timeout` (1 s here)")
    for _ in range(times):
        with Supervised(EngineOptions(stop_timeout=1.0), 1) as there:
            pid = there.pid()
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            there.fleet.stop(drain=False)
            row.count(not psutil.pid_exists(pid), time.monotonic() - began)
    return row


def port_taken(times: int) -> FleetRow:
    row = FleetRow("its port taken while it was down", "waits with a reason, comes back on the same port")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Supervised(EngineOptions(port=port), 1, crash_limit=0, restart_delay=0.3, max_restart_delay=0.3) as there:
        for _ in range(times):
            generation = there.fleet.snapshot()[0].generation
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken = threading.Event()

                def take(thief: socket.socket = thief, taken: threading.Event = taken) -> None:
                    if there.state() == "restarting" and not taken.is_set():
                        thief.bind(("127.0.0.1", port))
                        thief.listen()
                        taken.set()

                leave = there.fleet.subscribe(take)
                os.kill(there.pid(), signal.SIGKILL)
                told = there.wait(lambda: "is taken" in there.fleet.status()[0].reason)
                leave()
            began = time.monotonic()
            row.count(told and there.back(generation), time.monotonic() - began)
    row.notes = "seconds after the port was free"
    return row


def garbage(directory: Path, times: int) -> FleetRow:
    row = FleetRow("the model file replaced by garbage before a rolling restart", "the others serve on, untouched")
    for number in range(times):
        model = directory / f"model-{number}.gguf"
        model.write_bytes(demo_model_path().read_bytes())
        with Supervised(EngineOptions(model=str(model)), 3, crash_limit=2) as there:
            bad = directory / "bad.gguf"
            bad.write_bytes(b"garbage" * 1000)
            bad.rename(model)
            before = there.fleet.snapshot()[1:]
            done = [order.done.result(PATIENCE) for order in there.fleet.restart_all()]
            there.wait(lambda: there.state() == "failed")
            serving = there.fleet.snapshot()[1:] == before and there.back(0, 1) and there.back(0, 2)
            row.count(serving and not any(done) and there.said("rolling"))
        model.unlink()
    return row


def full_disk(directory: Path, times: int) -> FleetRow:
    row = FleetRow("a full disk for saved slots", "restarted without them")
    mount = directory / "cache"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "llamastream-faults", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        row.notes = "not tried: needs the right to mount a small file system"
        return row
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(mount)
    try:
        for _ in range(times):
            with Supervised(instances=1, warm=True) as there, StreamingClient(there.fleet) as client:
                client.chat([{"role": "user", "content": "word " * 500}], max_tokens=4)
                began = time.monotonic()
                done = there.fleet.restart("demo-0").done.result(PATIENCE)
                row.count(done and there.back(1), time.monotonic() - began)
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
        subprocess.run(["umount", str(mount)], check=True)
    return row


def leak(times: int) -> FleetRow:
    """The server's own cache of prompts is what grows: unbounded, as far as the limit is concerned."""
    row = FleetRow("memory that grows with every request", "replaced before the limit is reached")
    with Supervised(instances=1) as there:
        there.wait(lambda: there.fleet.status()[0].rss_bytes)
        base = there.fleet.status()[0].rss_bytes
    limit = base + (160 << 20)
    shares = []
    for number in range(times):
        settings = {"memory_limit": str(limit), "memory_window": 12.0, "drain_timeout": 2.0}
        with Supervised(EngineOptions(cache_ram=4096), 2, **settings) as there:
            highest, began = 0, time.monotonic()
            with StreamingClient(there.fleet.snapshot()[0].url) as client:
                count = 0
                while there.fleet.snapshot()[0].generation == 1 and time.monotonic() - began < PATIENCE:
                    count += 1
                    # a few a second: as fast as it goes, the limit is there before anything can be learned
                    client.complete(f"{number} {count} " + "word " * 700, max_tokens=1)
                    highest = max(highest, there.fleet.status()[0].rss_bytes)
                    time.sleep(0.15)
            shares.append(highest / limit)
            row.count(
                highest < limit and there.back(1), time.monotonic() - began, f"{highest / limit:.0%} of the limit"
            )
    row.notes = f"at {max(shares):.0%} of the limit at most"
    return row


def rolling(times: int) -> FleetRow:
    row = FleetRow(f"rolling restart of 2 instances under {STREAMS} streams", "no stream fails, no answer changes")
    answers = moved = 0
    options = EngineOptions(parallel=STREAMS)
    with Supervised(options, drain_timeout=0.1) as there, StreamingClient(there.fleet, temperature=0) as client:
        whole = client.chat(QUESTION).text
        for _ in range(times):
            over = threading.Event()

            def stream(over: threading.Event = over) -> tuple[int, int, list[str]]:
                count = recovered = 0
                wrong = []
                while not over.is_set() or not count:
                    count += 1
                    try:
                        result = client.stream_chat(QUESTION).result()
                        recovered += len(result.stats.recoveries)
                        if result.text != whole:
                            wrong.append("another answer")
                    except LlamaStreamError as error:
                        wrong.append(str(error))
                return count, recovered, wrong

            with ThreadPoolExecutor(STREAMS) as pool:
                streams = [pool.submit(stream) for _ in range(STREAMS)]
                there.wait(lambda: sum(report.in_flight for report in there.fleet.status()) > STREAMS // 2, 5)
                began = time.monotonic()
                done = [order.done.result(PATIENCE) for order in there.fleet.restart_all()]
                seconds = time.monotonic() - began
                over.set()
                found = [each.result(PATIENCE) for each in streams]
            answers += sum(count for count, _, _ in found)
            moved += sum(recovered for _, recovered, _ in found)
            wrong = [message for _, _, messages in found for message in messages]
            row.count(all(done) and not wrong, seconds, "; ".join(wrong[:3]))
    row.notes = f"{answers:,} answers, {moved:,} breaks in the middle of them"
    return row


def supervisor_killed(times: int) -> FleetRow:
    row = FleetRow("kill -9 of the supervisor", "no llama-server is left")
    for _ in range(times):
        with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
            began = time.monotonic()
            parent.kill()
            _, alive = psutil.wait_procs(servers, timeout=10)
            row.count(len(servers) == 2 and not alive, time.monotonic() - began)
    return row


def cycles(times: int) -> FleetRow:
    row = FleetRow(f"{times:,} crashes and restarts of one instance", "no growth of descriptors, threads, memory")
    process = psutil.Process()
    with Supervised(instances=1, crash_limit=0, restart_delay=0.01, max_restart_delay=0.01) as there:

        def crash() -> None:
            generation = there.fleet.snapshot()[0].generation
            os.kill(there.pid(), signal.SIGKILL)
            there.wait(lambda: there.state() == "ready" and there.fleet.snapshot()[0].generation > generation)

        for _ in range(max(5, times // 10)):
            crash()
        gc.collect()
        began = time.monotonic()
        before = process.num_fds(), process.num_threads(), process.memory_info().rss
        for _ in range(times):
            crash()
            there.events.clear()
        gc.collect()
        after = process.num_fds(), process.num_threads(), process.memory_info().rss
        grown = (after[2] - before[2]) / times
        good = after[0] <= before[0] and after[1] <= before[1] + 1 and grown < 1024
        row.count(good, (time.monotonic() - began) / times, f"{before} → {after}")
        row.notes = (
            f"seconds for each; descriptors {before[0]} → {after[0]}, threads {before[1]} → {after[1]}, memory "
            f"{before[2] / 2**20:.1f} → {after[2] / 2**20:.1f} MiB"
        )
    return row
