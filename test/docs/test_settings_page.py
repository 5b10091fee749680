"""docs/settings.md says what the code declares."""

from __future__ import annotations

from docs.generate_settings import PAGE, page


def test_the_settings_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: .venv/bin/python docs/generate_settings.py"
