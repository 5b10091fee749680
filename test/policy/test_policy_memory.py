"""When memory is too much, or will be."""

from __future__ import annotations

import random

from llamastream.policy.budget import LEAST_SPARE, Need, allowances, divided, refusal, total
from llamastream.policy.memory import SAMPLES, MemoryPolicy, MemoryWatch

MIB = 1 << 20
POLICY = MemoryPolicy(limit=1000 * MIB, window=600.0, min_samples=10, min_seconds=60.0, lead=60.0)


def test_without_a_limit_nothing_is_too_much() -> None:
    watch = MemoryWatch(MemoryPolicy())
    assert {watch.observe(10.0 * t, t * 100 * MIB).level for t in range(1000)} == {"ok"}


def test_near_the_limit_is_a_warning_and_above_it_a_restart() -> None:
    watch = MemoryWatch(POLICY)
    assert watch.observe(0.0, 799 * MIB).level == "ok"
    assert watch.observe(1.0, 800 * MIB).level == "warning"
    verdict = watch.observe(2.0, 1000 * MIB)
    assert verdict.level == "restart"
    assert verdict.reason == "1,000.0 MiB of memory, the limit is 1,000.0 MiB"


def test_an_allowance_counts_from_the_first_look() -> None:
    watch = MemoryWatch(MemoryPolicy(allowance=100 * MIB))
    assert watch.observe(0.0, 0).level == "ok"  # nothing could be read
    sizes = (5000, 5079, 5080, 5099, 5100)
    assert [watch.observe(1.0 + n, size * MIB).level for n, size in enumerate(sizes)] == [
        "ok", "ok", "warning", "warning", "restart",
    ]  # fmt: skip


def test_allowances_leave_the_machine_what_it_needs() -> None:
    gib = 1 << 30
    need = Need(name="a", model="m", weights=20 * gib, kv_cache=2 * gib, prompt_cache=2 * gib, overhead=gib)
    others = [need, Need(name="b", model="m", weights=20 * gib, kv_cache=2 * gib, prompt_cache=2 * gib, overhead=gib)]
    found = allowances(others, 64 * gib)
    assert found == (found[0], found[0])
    # shared weights once, the context that each has when it is ready, and what both may come to have
    assert 20 * gib + 2 * 2 * gib + sum(found) <= 0.9 * 64 * gib
    assert found[0] > need.prompt_cache + need.overhead
    tight = allowances(others, 30 * gib)
    assert tight == (3 * gib + LEAST_SPARE,) * 2
    assert allowances([], gib) == ()


def test_a_leak_is_caught_before_the_limit() -> None:
    watch, caught = MemoryWatch(POLICY), 0
    for seconds in range(0, 2000, 2):
        size = (100 + seconds) * MIB  # 1 MiB a second
        if watch.observe(float(seconds), size).level == "restart":
            caught = size
            break
    assert 900 * MIB <= caught < 1000 * MIB


def test_growth_needs_evidence() -> None:
    watch = MemoryWatch(POLICY)
    for seconds in range(55):
        assert watch.observe(float(seconds), (100 + 15 * seconds) * MIB).slope is None


def test_a_step_is_no_growth_and_noise_neither() -> None:
    draw = random.Random(7)
    watch = MemoryWatch(MemoryPolicy(limit=1000 * MIB, slope_limit=0.05 * MIB))
    levels = set()
    for seconds in range(0, 3000, 2):
        step = 300 if seconds > 1500 else 100
        levels.add(watch.observe(float(seconds), int((step + draw.uniform(-20, 20)) * MIB)).level)
    assert levels == {"ok"}


def test_steady_growth_above_its_limit_is_a_restart() -> None:
    watch = MemoryWatch(MemoryPolicy(slope_limit=0.5 * MIB))
    verdict = None
    for seconds in range(0, 700, 10):
        verdict = watch.observe(float(seconds), 100 * MIB + seconds * MIB)
    assert verdict is not None
    assert verdict.level == "restart"
    assert verdict.reason == "memory grows by 3,600.0 MiB an hour, 1,800.0 MiB are allowed"


def test_what_is_kept_is_bounded() -> None:
    watch = MemoryWatch(POLICY)
    for number in range(100_000):
        watch.observe(number * 0.1, 100 * MIB)
    assert len(watch._samples) <= SAMPLES + 1


def need(name: str, model: str = "a.gguf", weights: int = 4) -> Need:
    gib = 1 << 30
    return Need(name=name, model=model, weights=weights * gib, kv_cache=gib, prompt_cache=gib // 2, overhead=gib // 4)


def test_instances_of_one_model_share_its_weights() -> None:
    gib = 1 << 30
    assert total([need("0"), need("1")]) == 4 * gib + 2 * (gib + gib // 2 + gib // 4)
    assert total([need("0"), need("1", "b.gguf")]) == 8 * gib + 2 * (gib + gib // 2 + gib // 4)


def test_a_refusal_says_what_needs_how_much_and_what_to_do() -> None:
    assert refusal([need("0"), need("1")], 8 << 30) is None
    reason = refusal([need("0"), need("1")], 7 << 30)
    assert reason is not None
    for part in ("2 instances need 7.50 GiB", "4.00 GiB weights", "7.00 GiB are available", "memory_check"):
        assert part in reason


def test_threads_are_shared_out() -> None:
    assert divided(8, 3) == (3, 3, 2)
    assert divided(2, 4) == (1, 1, 1, 1)
    assert divided(5, 1) == (5,)
