"""Memory and CPU time of a server's process and of what it started."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

# the figures that cost no look at every process of the machine: how often children are looked for
CHILDREN_EVERY = 60


class Footprint:
    """Reads the figures of one process. Not thread-safe."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looks = 0
        self._children: list[int] = []
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.Error:
            self._process = None

    def memory(self) -> int:
        """Bytes of private memory and swap of the process tree; 0 if it is gone."""
        if self._looks % CHILDREN_EVERY == 0:
            self._children = self._find_children()
        self._looks += 1
        return sum(private_memory(pid) for pid in (self._pid, *self._children))

    def cpu_seconds(self) -> float | None:
        """CPU time of the process so far, user and system; None if it is gone."""
        if self._process is None:
            return None
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return None
        return times.user + times.system

    def _find_children(self) -> list[int]:
        if self._process is None:
            return []
        try:
            return [child.pid for child in self._process.children(recursive=True)]
        except psutil.Error:
            return []


def private_memory(pid: int) -> int:
    """Bytes that only this process uses, swap included; 0 if it is gone.

    On Linux `RssAnon + VmSwap` (pages of the model file, which the system can drop, are not among them), elsewhere the
    unique set size, else the resident set.
    """
    if sys.platform.startswith("linux"):
        try:
            return parse_status(Path(f"/proc/{pid}/status").read_text("ascii", "replace"))
        except OSError:
            return 0
    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except psutil.AccessDenied:  # macOS, for what is not ours
            return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def parse_status(text: str) -> int:
    """`RssAnon + VmSwap` of the text of `/proc/PID/status`, in bytes."""
    total = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "VmSwap"):
            total += int(value.split()[0]) * 1024
    return total
