"""What others wrote (models, servers, files), made safe for a terminal."""

from __future__ import annotations

_KEPT = "\n\t"
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT} | {0x7F: "␡"}
# C1 controls: some terminals obey U+009B as they obey ESC [. They have no pictures of their own.
_C1 = dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
# Overrides of the writing direction and their ends: with them a text can show the reverse of what it says.
_DIRECTION = dict.fromkeys([0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069], "")
_TABLE: dict[int, str] = {**_VISIBLE, **_C1, **_DIRECTION, 0x0D: ""}


def printable(text: str) -> str:
    """The text without anything that a terminal would obey: control characters become pictures of themselves.

    Looks at single characters only, so that a sequence that is split over two pieces of a stream is as harmless as a
    whole one, and an unfinished one cannot swallow the text behind it. Carriage returns go, since they would let a
    line overwrite itself; line feeds and tabs stay.
    """
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """The same, and its white space is single blanks."""
    return " ".join(printable(text).split())
