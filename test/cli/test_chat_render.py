"""Markdown that is drawn while it comes: nothing lost, nothing twice, nothing obeyed, whatever the screen's size."""

from __future__ import annotations

import io
import random
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llamastream.cli import markdown
from llamastream.cli.render import MarkdownView, PlainView
from llamastream.engine.demo import demo_questions


class Terminal:
    """Just enough of one: lines, a cursor that cannot go above the screen, and erasing."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, data: str) -> None:
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]|\x1b", data):
            if len(part) > 1:
                self._obey(part)
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            else:
                assert part >= " ", f"{part!r} reached the terminal"
                if self.column == self.width:
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")

    def _obey(self, sequence: str) -> None:
        number, kind = sequence[2:-1], sequence[-1]
        if kind == "A":
            self.row = max(self.row - int(number), len(self.lines) - self.height, 0)
        elif kind == "J":
            assert (number, self.column) == ("", 0)
            self.lines[self.row :] = [""]
        else:
            assert kind in "mhl", f"{sequence!r} reached the terminal"

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


def draw(text: str, width: int = 60, height: int = 10, *, seed: int = 0, slow: bool = True) -> str:
    """What a terminal shows in the end if `text` comes in pieces; `slow`: each piece is drawn."""
    file, terminal = io.StringIO(), Terminal(width, height)
    console = Console(file=file, force_terminal=True, width=width, height=height, color_system="truecolor")
    view = MarkdownView(console)
    dice = random.Random(seed)
    position = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamastream.cli.render.FRAME", 0)
        patch.setattr("llamastream.cli.render._REST", 0)
        while position < len(text):
            size = dice.randint(1, 12)
            view.text(text[position : position + size])
            position += size
            if slow:
                threading.Event().wait(0.0004)  # lets the painter have a turn; what it does with it must not matter
        view.end()
    terminal.write(file.getvalue())
    return terminal.text()


def whole(text: str, width: int, height: int) -> str:
    """The same text rendered in one go."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height)
    for line in markdown.render(console, text):
        print(markdown.text_of(line), file=file)
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n")).strip("\n")


def squeezed(text: str) -> str:
    """Without empty lines: these may differ between blocks drawn apart and together."""
    return "\n".join(line for line in text.split("\n") if line.strip())


LONG_LIST = (
    "Steps:\n\n" + "\n".join(f"{n}. step number {n}, which is told in words" for n in range(1, 60)) + "\n\nDone."
)
LONG_CODE = "```python\n" + "\n".join(f"value_{n} = compute({n})" for n in range(80)) + "\n```\n\nThat is all."
POEM = "roses are red\nviolets are blue\n\n> quoted\n> lines\n\n---\n\n# Heading\n\ntext with **bold** and `code`"


@pytest.mark.parametrize("text", [LONG_LIST, LONG_CODE, POEM, "one", "", "\n\nafter empty lines"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (30, 8), (132, 50)])
def test_drawn_in_pieces_it_looks_as_if_drawn_at_once(text: str, width: int, height: int) -> None:
    for seed in range(3):
        assert squeezed(draw(text, width, height, seed=seed)) == squeezed(whole(text, width, height))


@pytest.mark.parametrize("answer", [q.answer for q in demo_questions()][::6])
def test_answers_of_the_demo_model(answer: str) -> None:
    if all(len(character) == 1 and ord(character) < 0x1F000 for character in answer):  # the Terminal knows no wide ones
        assert squeezed(draw(answer, 50, 7)) == squeezed(whole(answer, 50, 7))


def test_a_table_that_grows_is_there_as_a_whole_in_the_end() -> None:
    rows = [f"| {n} | {'wide ' * (n // 4)}cell{n}. |" for n in range(1, 40)]
    shown = draw("| a | b |\n|---|---|\n" + "\n".join(rows) + "\n\nThe end.", 60, 10)
    positions = [shown.rindex(f"cell{n}.") for n in range(1, 40)]
    assert positions == sorted(positions), "the last one is whole and in order"
    assert shown.endswith("The end.")


def test_nothing_that_markdown_would_hide_is_hidden() -> None:
    text = (
        'Use <div class="x"> and <br>.\n\n<script>\nlet a;\n</script>\n\n[1]: http://example.org/ref\n\n'
        "![picture](http://example.org/p.png) and [link](http://example.org/l) and <http://example.org/a>.\n"
    )
    shown = draw(text, 100, 40)
    for part in ('<div class="x">', "<br>", "<script>", "let a;", "/ref", "picture", "/p.png", "/l", "/a>"):
        assert part in shown


def test_nothing_reaches_the_terminal_that_it_would_obey() -> None:
    shown = draw("a\x1b[2Jb \x1b]8;;http://evil\x07c\x1b\\\r\x9b1m `\x1b[31m`\n\n```\n\x1b]0;t\x07\n```\n", 80, 20)
    assert shown.count("␛") == 5  # Terminal has refused anything else


@given(
    st.lists(
        st.sampled_from(
            [
                "word",
                " ",
                "\n",
                "\n\n",
                "- ",
                "1. ",
                "# ",
                "```",
                "`",
                "**",
                "*",
                "> ",
                "| a | b |\n",
                "|---|---|\n",
                "[",
                "](x)",
                "<b>",
                "    ",
                "\\",
                "---\n",
                "é",
                "&amp;",
                "~~",
                "\t",
                "!",
                "===",
            ]
        ),
        max_size=60,
    ),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_word_of_any_text_is_shown(parts: list[str], seed: int) -> None:
    counted = [f"{part}{n}x" if part == "word" else part for n, part in enumerate(parts)]
    words = [part for part in counted if part.startswith("word")]
    text = "".join(counted)
    fences = [line for line in text.split("\n") if "```" in line]
    shown = re.sub(r"[\s│▌]", "", draw(text, 40, 8, seed=seed, slow=False))
    for word in words:
        # A fence's first line names a language, which is no text.
        if not any(word in line for line in fences):
            assert word in shown, text


def test_what_cannot_be_rendered_is_shown_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        raise RecursionError

    monkeypatch.setattr(markdown, "Markdown", fail)
    assert draw("**one**\n\ntwo") == "**one**\n\ntwo"


def test_reasoning_is_dimmed_apart_and_can_be_hidden() -> None:
    for shown in (True, False):
        file = io.StringIO()
        view = MarkdownView(Console(file=file, force_terminal=True, width=60, height=20), show_reasoning=shown)
        for piece in ("let me ", "think\x1b[1m"):
            view.reasoning(piece)
        view.text("**Yes**")
        view.note("the model calls the tool \x1b[1madd")
        view.end()
        raw, terminal = file.getvalue(), Terminal(60, 20)
        terminal.write(raw)
        expected = "Yes\nthe model calls the tool ␛[1madd"
        assert terminal.text() == ("let me think␛[1m\n\n" if shown else "") + expected
        assert ("\x1b[2;3mlet me " in raw) == shown


def test_plain_text_is_as_it_came() -> None:
    file = io.StringIO()
    view = PlainView(Console(file=file, width=20))
    view.reasoning("hm")
    for piece in ("\n\n**not** ", "rendered\tand never wrapped here\x1b[2J"):
        view.text(piece)
    view.end()
    view.end()
    assert file.getvalue() == "hm\n\n**not** rendered\tand never wrapped here␛[2J\n"


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one paragraph", ""),
        ("one\n\ntwo\n", "one\n\n"),
        ("one\n#", ""),
        ("# head\ntext\n", "# head\n"),
        ("- a\n- b\n\n- c\n", ""),
        ("```\na\n```\nb", ""),
        ("- a\n\ntext\n", "- a\n\n"),
        ("one\n\ntwo", "one\n\n"),
        ("1. a\n\n2", ""),
        ("```\ncode\n\nmore\n", ""),
        ("```\ncode\n```\nafter\n", "```\ncode\n```\n"),
        ("a | b\n", ""),
    ],
)
def test_which_blocks_are_finished(text: str, done: str) -> None:
    assert text[: markdown.finished(text)] == done
