"""Cores and memory: the kernel's files of machines that we are not on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.engine import machine


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("400000 100000", 4.0), ("", None), ("-1 100000", None),
     ("x y", None), ("50000", 0.5)],
)  # fmt: skip
def test_cpu_quota(text: str, cpus: float | None) -> None:
    assert machine.parse_cpu_max(text) == cpus


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("1073741824\n", 2**30), ("9223372036854771712", None), ("", None), ("-1", None)],
)
def test_memory_limit(text: str, limit: int | None) -> None:
    assert machine.parse_limit(text) == limit


def test_cgroup_lines_of_both_versions() -> None:
    v2 = "0::/user.slice/x.scope\n"
    v1 = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/def\n0::/ignored\n"
    assert machine.parse_cgroup(v2, "cpu") == "/user.slice/x.scope"
    assert machine.parse_cgroup(v1, "cpu") == "/docker/abc"
    assert machine.parse_cgroup(v1, "memory") == "/docker/def"
    assert machine.parse_cgroup("", "cpu") is None


@pytest.mark.parametrize(
    ("physical", "affinity", "siblings", "quota", "usable"),
    [
        (4, 8, ["0,4", "1,5", "2,6", "3,7"] * 2, None, 4),  # hyperthreads share cores
        (4, 2, ["0,4", "0,4"], None, 1),  # pinned to both threads of one core
        (4, 8, ["0,4", "1,5", "2,6", "3,7"] * 2, 1.5, 2),  # a container with 1.5 CPUs
        (4, 8, ["0,4", "1,5", "2,6", "3,7"] * 2, 0.5, 1),
        (8, 8, [None] * 8, None, 8),  # no topology: macOS
        (8, 3, [], None, 3),
    ],
)
def test_usable_cores(
    physical: int, affinity: int, siblings: list[str | None], quota: float | None, usable: int
) -> None:
    assert machine.usable_cores(physical, affinity, siblings, quota) == usable


@given(
    st.integers(1, 256),
    st.integers(1, 256),
    st.lists(st.none() | st.text(max_size=4)),
    st.none() | st.floats(0.01, 300),
)
def test_there_is_always_a_core(physical: int, affinity: int, siblings: list[str | None], quota: float | None) -> None:
    assert machine.usable_cores(physical, affinity, siblings, quota) >= 1


def test_this_machine() -> None:
    cores, memory = machine.cores(), machine.memory()
    assert 1 <= cores.usable <= cores.affinity <= cores.logical
    assert 0 < memory.available <= memory.usable <= memory.total


def test_prompt_cache_is_bounded_by_the_memory() -> None:
    assert machine.default_cache_ram(8 << 30) == 1024
    assert machine.default_cache_ram(1 << 40) == 8192


def test_cpu_features_of_both_families() -> None:
    assert machine.parse_cpu_features("model name\t: x\nflags\t\t: fpu avx avx2 fma f16c avx512f\n") == (
        "avx", "avx2", "fma", "f16c", "avx512f",
    )  # fmt: skip
    assert machine.parse_cpu_features("Features\t: fp asimd asimddp i8mm\n") == ("neon", "dotprod", "i8mm")
    assert machine.parse_cpu_features("") == ()
