"""When a server is taken to hang, told with looks at made-up times."""

from __future__ import annotations

from typing import Any

from llamastream.policy.wedge import Look, Verdict, WedgePolicy, WedgeWatch, remedy

POLICY = WedgePolicy(quiet_limit=5.0, compute_limit=60.0)
IDLE = [{"id": 0, "is_processing": False}]


def busy(decoded: int, prompt: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "id": 0,
            "is_processing": True,
            "id_task": 1,
            "n_prompt_tokens_processed": prompt,
            "next_token": [{"n_decoded": decoded}],
        }
    ]


def verdicts(*looks: Look) -> list[Verdict]:
    watch = WedgeWatch(POLICY, 0.0)
    return [watch.observe(look) for look in looks]


def test_an_answer_of_an_idle_loop_is_life() -> None:
    assert verdicts(*(Look(now=float(t), slots=IDLE, cpu_seconds=0.0) for t in range(100))) == ["well"] * 100


def test_progress_of_a_slot_is_life() -> None:
    assert verdicts(*(Look(now=2.0 * t, slots=busy(t)) for t in range(20))) == ["well"] * 20


def test_no_answer_and_no_work_leads_to_the_canary() -> None:
    looks = [Look(now=float(t), slots=None, cpu_seconds=1.0) for t in range(7)]
    assert verdicts(*looks) == ["well", "quiet", "quiet", "quiet", "quiet", "canary", "canary"]


def test_a_slot_that_stands_still_leads_to_the_canary() -> None:
    assert verdicts(*(Look(now=2.0 * t, slots=busy(7)) for t in range(4))) == ["well", "quiet", "quiet", "canary"]


def test_the_canary_decides() -> None:
    watch = WedgeWatch(POLICY, 0.0)
    assert watch.observe(Look(now=6.0, slots=None)) == "canary"
    assert watch.observe(Look(now=7.0, slots=None, canary=True)) == "well"
    assert watch.observe(Look(now=13.0, slots=None)) == "canary"
    assert watch.observe(Look(now=18.0, slots=None, canary=False)) == "wedged"
    assert "11 s" in watch.explain(18.0)


def test_a_long_prefill_is_no_wedge_while_it_computes() -> None:
    # 30 s in one batch: /slots is not answered, but a core is at work
    looks = [Look(now=2.0 * t, slots=None, cpu_seconds=2.0 * t) for t in range(1, 16)]
    assert verdicts(Look(now=0.0, slots=busy(0), cpu_seconds=0.0), *looks) == ["well"] * 16


def test_computing_for_ever_leads_to_the_canary() -> None:
    looks = [Look(now=float(t), slots=None, cpu_seconds=float(t)) for t in range(1, 70)]
    found = verdicts(Look(now=0.0, slots=busy(0), cpu_seconds=0.0), *looks)
    assert "canary" not in found[:64]
    assert found[65] == "canary"


def test_little_cpu_time_is_no_life() -> None:
    looks = [Look(now=float(t), slots=None, cpu_seconds=0.05 * t) for t in range(7)]
    assert verdicts(*looks)[-1] == "canary"


def test_a_server_without_slots_is_judged_by_its_health() -> None:
    assert verdicts(*(Look(now=float(t), slots=None, healthy=True) for t in range(10))) == ["well"] * 10
    assert verdicts(*(Look(now=float(t), slots=None, healthy=False) for t in range(7)))[-1] == "canary"


def test_one_that_hangs_has_a_moment_to_get_on_again_and_one_that_does_so_twice_is_replaced() -> None:
    assert remedy(lives=False, hung_before=0, waited=0.5, grace=2.0) == "wait"
    assert remedy(lives=False, hung_before=0, waited=2.0, grace=2.0) == "end"
    assert remedy(lives=True, hung_before=0, waited=0.5, grace=2.0) == "serve"
    assert remedy(lives=True, hung_before=1, waited=0.5, grace=2.0) == "replace"
