"""Cases, and one line of a report for each group of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tools.demo_model.client import Message


@dataclass(slots=True)
class Check:
    """One line of the report."""

    name: str
    total: int
    passed: int
    needed: float
    failures: list[str]

    @property
    def good(self) -> bool:
        """Whether enough cases passed."""
        return self.total > 0 and self.passed >= self.needed * self.total


def first_difference(expected: str, got: str) -> str:
    """Where two texts part."""
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    return f"at {at}: expected {expected[at : at + 30]!r}, got {got[at : at + 30]!r}"


class Report:
    """Runs groups of cases and keeps what came of them."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def run(self, name: str, cases: Iterable[Callable[[], str | None]], needed: float = 1.0, workers: int = 1) -> None:
        """Run cases (each returns None, or what is wrong) and print a line of the report."""
        tasks = list(cases)
        began = time.monotonic()
        with ThreadPoolExecutor(workers) as pool:
            failures = [wrong for wrong in pool.map(lambda case: case(), tasks) if wrong]
        check = Check(name, len(tasks), len(tasks) - len(failures), needed, failures)
        self.checks.append(check)
        share = 100 * check.passed / max(1, check.total)
        print(
            f"{name:44s} {check.passed:5d} / {check.total:<5d} {share:6.1f} %  needed {100 * needed:5.1f} %  "
            f"{'ok' if check.good else 'FAILED':6s} {time.monotonic() - began:6.1f} s",
            flush=True,
        )
        for failure in failures[:8]:
            print(f"    {failure}")


def user(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    """A system prompt."""
    return {"role": "system", "content": content}
