"""The picture in the README shows a whole answer, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from llamastream.engine import demo

PICTURE = Path(__file__).parents[2] / "docs" / "terminal.svg"


def shown_text() -> str:
    """The text of the picture without any white space, since lines are wrapped in it."""
    root = ElementTree.fromstring(PICTURE.read_bytes())
    return re.sub(
        r"\s", "", "".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
    )


def test_the_picture_shows_command_answer_and_summary() -> None:
    entries = msgspec.json.decode((demo.DATA / "demo.json").read_bytes())["answers"]
    answer = next(entry["answer"] for entry in entries if entry["question"] == "Tell me a story.")
    text = shown_text()
    assert "$llamastreamchat" in text
    assert re.sub(r"\s", "", answer) in text, "cut or changed: make picture"
    assert re.search(r"firsttoken[\d.,]+m?s·[\d,]+tokens/s·\d+tokens·stop", text)


def test_the_picture_loads_nothing_from_elsewhere() -> None:
    source = PICTURE.read_text(encoding="utf-8")
    assert not re.search(r"(?:href|src|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//|@import|@font-face", source)
