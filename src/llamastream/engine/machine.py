"""What the machine gives us: usable cores and memory, with CPU affinity and cgroup limits respected.

The functions that parse take the text of the kernel's files, so that they can be tested without a container.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import psutil
from msgspec import Struct

CGROUP_ROOT = Path("/sys/fs/cgroup")
# cgroup v1 writes "no limit" as the largest page-aligned number
_NO_LIMIT = 1 << 60


class Cores(Struct, frozen=True):
    """CPU cores: of the machine (`logical`, `physical`), allowed by affinity, and by the cgroup's CPU quota.

    `usable` is what compute threads should use: physical cores within affinity and quota.
    """

    logical: int
    physical: int
    affinity: int
    cgroup: float | None
    usable: int


class Memory(Struct, frozen=True):
    """Memory in bytes; `limit` is the cgroup's limit or None; `usable` the smaller of total and limit."""

    total: int
    available: int
    limit: int | None
    usable: int


def cores() -> Cores:
    """Count the cores that this process may use."""
    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(logical))
    quota = min((q for q in map(_cpu_quota, _cgroup_dirs("cpu")) if q is not None), default=None)
    siblings = [_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in allowed]
    return Cores(
        logical=logical,
        physical=physical,
        affinity=len(allowed),
        cgroup=quota,
        usable=usable_cores(physical, len(allowed), siblings, quota),
    )


def usable_cores(physical: int, affinity: int, siblings: Iterable[str | None], quota: float | None) -> int:
    """Physical cores within the affinity mask and the CPU quota, at least 1.

    `siblings` has `thread_siblings_list` of each allowed CPU: those with the same list share a physical core.
    """
    lists = list(siblings)
    # without topology files (macOS, some virtual machines) the counts are all there is
    within = len(set(lists)) if lists and None not in lists else min(physical, affinity)
    if quota is not None:
        within = min(within, math.ceil(quota))
    return max(1, within)


def parse_cpu_max(text: str) -> float | None:
    """cgroup v2 `cpu.max` (`"max 100000"`, `"150000 100000"`) as a number of CPUs; None without a limit."""
    parts = text.split()
    if not parts or parts[0] == "max":
        return None
    try:
        quota, period = int(parts[0]), int(parts[1]) if len(parts) > 1 else 100_000
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_limit(text: str) -> int | None:
    """A memory limit of cgroup v1 or v2 in bytes; None without a limit."""
    text = text.strip()
    if not text.isdigit():
        return None
    value = int(text)
    return value if value < _NO_LIMIT else None


def parse_cgroup(text: str, controller: str) -> str | None:
    """This process's directory from `/proc/self/cgroup`, relative to the hierarchy's root.

    A v1 line that names the controller wins; else the v2 line (`0::/path`); None if there is neither.
    """
    unified = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            return path
        if number == "0" and not names:
            unified = path
    return unified


def memory() -> Memory:
    """The machine's memory, bounded by the cgroup limit."""
    info = psutil.virtual_memory()
    limit = min((n for n in map(_memory_limit, _cgroup_dirs("memory")) if n is not None), default=None)
    usable = min(info.total, limit) if limit else info.total
    return Memory(total=info.total, available=min(info.available, usable), limit=limit, usable=usable)


def default_cache_ram(usable: int) -> int:
    """MiB for the prompt cache: an eighth of the usable memory, at most the server's own default of 8192."""
    return min(8192, usable // (8 << 20))


def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter for inference, of those that this CPU has (`avx2`, `avx512f`, `neon`, ...)."""
    if sys.platform == "darwin":
        # every Apple silicon CPU has them; Intel Macs are named by sysctl, which costs a process: left out
        return ("neon", "dotprod", "fp16") if platform.machine() == "arm64" else ()
    return parse_cpu_features(_read("/proc/cpuinfo") or "")


_FEATURES = {
    "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2",
    "avx512f": "avx512f", "avx512vnni": "avx512vnni", "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16",
    "avx_vnni": "avxvnni", "amx_int8": "amx", "asimd": "neon", "neon": "neon", "asimddp": "dotprod",
    "fphp": "fp16", "i8mm": "i8mm", "sve": "sve",
}  # fmt: skip


def parse_cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Pick the interesting flags out of `/proc/cpuinfo` (x86 `flags`, ARM `Features`)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found = set(value.split())
            return tuple(dict.fromkeys(shown for flag, shown in _FEATURES.items() if flag in found))
    return ()


def _cgroup_dirs(controller: str) -> Iterator[Path]:
    """The process's cgroup directory and all its parents: a limit of any of them binds."""
    path = parse_cgroup(_read("/proc/self/cgroup") or "", controller)
    if path is None:
        return
    for root in (CGROUP_ROOT, CGROUP_ROOT / controller):
        # within a container the path may be the host's: then only the root exists, and it is the right one
        for parent in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield root / str(parent).lstrip("/")


def _cpu_quota(directory: Path) -> float | None:
    if (text := _read(directory / "cpu.max")) is not None:
        return parse_cpu_max(text)
    quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    return parse_cpu_max(f"{quota.strip()} {period.strip()}") if quota and period else None


def _memory_limit(directory: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (text := _read(directory / name)) is not None:
            return parse_limit(text)
    return None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return None
