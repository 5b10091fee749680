"""As process 1 of a container, whoever loses its parent is ours: their ends have to be taken note of."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


class Reaper:
    """Takes note of ended processes that nobody else waits for. Does nothing unless we are process 1."""

    def __init__(self) -> None:
        self._seen: frozenset[int] = frozenset()

    def tick(self) -> int:
        """To be called every few seconds; how many it took note of.

        Those that we started ourselves are waited for at once by who started them: what is still there at the second
        look is an orphan.
        """
        if os.getpid() != 1:
            return 0
        ended = frozenset(_ended_children())
        taken = 0
        for pid in ended & self._seen:
            with suppress(ChildProcessError):
                taken += os.waitpid(pid, os.WNOHANG)[0] == pid
        self._seen = ended - self._seen
        return taken


def _ended_children() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found
