"""What a measurement depends on besides the server: the machine and its system, without its name."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from llamastream._version import __version__
from llamastream.engine.facts import cores, memory


class Machine(Struct, frozen=True):
    """The machine that measures; the server may run on another. `memory` is in bytes; `host` only where wanted."""

    cpu: str
    cores: int
    usable_cores: int
    memory: int
    system: str
    python: str
    llamastream: str
    host: str = ""


def describe_machine(*, host: bool = False) -> Machine:
    """Look at this machine; its name only if `host`."""
    found = cores()
    return Machine(
        cpu=cpu_model(),
        cores=found.logical,
        usable_cores=found.usable,
        memory=memory().usable,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        llamastream=__version__,
        host=platform.node() if host else "",
    )


def cpu_model() -> str:
    """The CPU's name, as its maker gave it."""
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or os.name
