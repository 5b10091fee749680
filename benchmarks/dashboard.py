"""What the dashboard costs the process that serves it: `python benchmarks/dashboard.py`.

A real `llamastream serve` with eight demo servers, 1,000 short streamed requests a minute, in three states: the
dashboard switched off; on, with nobody looking; on, with a page that watches. The states take turns, and each is a
process of its own. What counts is the CPU time of `serve` itself (the servers are other processes), in percent of one
core. At the end, how soon a killed server is told to the page.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

STATES = ("off", "on", "watched")
BODY = json.dumps({"messages": [{"role": "user", "content": "Who are you?"}], "stream": True, "max_tokens": 4}).encode()


@contextlib.contextmanager
def serve(instances: int, dashboard: bool) -> Iterator[tuple[int, list[str], psutil.Process]]:
    """A running `serve`: its port, the ids of its instances, its process."""
    with tempfile.TemporaryDirectory(prefix="ls-") as directory:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA", "XDG_"))}
        environ |= {"HOME": directory, "XDG_RUNTIME_DIR": directory}
        environ["LLAMASTREAM_GATEWAY_DASHBOARD"] = "true" if dashboard else "false"
        command = [sys.executable, "-m", "llamastream", "serve", "--json", "--port", "0", "--kind", "embedded"]
        command += ["--threads", "1", "--instances", str(instances)]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "ready":
                    break
            else:
                raise SystemExit("serve did not start")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            names = [each["id"] for each in event["instances"]]
            yield urlsplit(event["url"]).port or 0, names, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


class Watcher(threading.Thread):
    """A page: reads the events, and notes when which state of the servers came."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.states: list[tuple[float, list[str]]] = []
        self.size = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._connection.request("GET", "/dashboard/events", headers={"X-Llamastream-Dashboard": "1"})
        self._response = self._connection.getresponse()
        assert self._response.status == 200

    def run(self) -> None:
        name = b""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            while line := self._response.readline():
                self.size += len(line)
                if line.startswith(b"event: "):
                    name = line
                elif line.startswith(b"data: ") and b"state" in name:
                    found = json.loads(line[6:])["instances"]
                    self.states.append((time.monotonic(), [each["state"] for each in found]))


def load(port: int, per_minute: float, seconds: float) -> int:
    """So many requests in open loop; how many failed."""
    failed = 0

    def one() -> None:
        nonlocal failed
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
            failed += b"[DONE]" not in connection.getresponse().read()
            connection.close()
        except OSError:
            failed += 1

    began, threads = time.monotonic(), []
    for number in range(round(per_minute * seconds / 60)):
        time.sleep(max(0.0, began + number * 60 / per_minute - time.monotonic()))
        threads.append(threading.Thread(target=one))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return failed


def measure(state: str, instances: int, seconds: float) -> dict[str, Any]:
    """One process in one state."""
    with serve(instances, state != "off") as (port, _, process):
        watcher = Watcher(port) if state == "watched" else None
        if watcher is not None:
            watcher.start()
        load(port, 1000, 3)
        before, began = process.cpu_times(), time.monotonic()
        failed = load(port, 1000, seconds)
        after, elapsed = process.cpu_times(), time.monotonic() - began
        cpu = after.user + after.system - before.user - before.system
        found: dict[str, Any] = {"state": state, "cpu_percent": 100 * cpu / elapsed, "failed": failed}
        if watcher is not None:
            found["bytes_per_second"] = watcher.size / elapsed
            victim = next(each for each in process.children(recursive=True) if not each.children())
            killed = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            while not any(at > killed and set(states) - {"ready", "busy"} for at, states in watcher.states):
                time.sleep(0.005)
                assert time.monotonic() < killed + 30
            shown = next(at for at, states in watcher.states if at > killed and set(states) - {"ready", "busy"})
            found["event_seconds"] = shown - killed
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    found = []
    for _ in range(arguments.rounds):
        for state in STATES:
            found.append(measure(state, arguments.instances, arguments.seconds))
            print(json.dumps(found[-1]), flush=True)
    base = statistics.median(each["cpu_percent"] for each in found if each["state"] == "off")
    for state in STATES[1:]:
        cpu = statistics.median(each["cpu_percent"] for each in found if each["state"] == state)
        print(f"{state}: {cpu - base:+.2f} % of a core more than off ({base:.2f} %)")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
