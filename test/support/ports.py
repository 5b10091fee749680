"""Ports for tests."""

from __future__ import annotations

import os
import random
import socket
from itertools import count as numbers

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_EACH = 2000
# Below what systems pick by themselves (from 32768 on Linux, 49152 on macOS), so that nobody is given such a port
# between the look and the use. Each worker of a test run has its own, and begins anywhere in them, beside other runs.
_FIRST = 10_000 + _WORKER % 10 * _EACH
_numbers = numbers(random.randrange(_EACH))


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens at the moment, and which no other test is given."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many ports in a row, on which nothing listens at the moment."""
    found: list[int] = []
    while len(found) < count:
        port = _FIRST + next(_numbers) % _EACH
        if not _is_free(port):
            found = []
        elif found and port != found[-1] + 1:  # begun again from the first
            found = [port]
        else:
            found.append(port)
    return found[0]


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
