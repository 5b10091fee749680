"""docs/reliability.md says what the code does: its table of rules is the one that decides."""

from __future__ import annotations

from llamastream.policy.recovery import RULES
from tools.faults import page


def test_the_table_of_rules_is_the_one_that_decides() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.between(text, "rules") == page.rule_table(), "run: python -m tools.faults --rules"
    assert page.rule_table().count("\n") == len(RULES) + 1


def test_the_measurements_are_there() -> None:
    text = page.between(page.PAGE.read_text(encoding="utf-8"), "measurements")
    assert "| fault | times tried | survived | longest gap | notes |" in text
    assert "WRONG" not in text
