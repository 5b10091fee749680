"""An answer's Markdown for the terminal: nothing of the text gets lost in it, and nothing in it is obeyed.

rich leaves out what a browser would not show (HTML, link targets, pictures' addresses, definitions of links) and cuts
table cells that do not fit. Whoever reads a model's answer wants to see all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box, markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

_LOSSY_RULES = ["html_block", "html_inline", "reference", "image", "autolink"]
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable(_LOSSY_RULES)
WIDEST = 100
"""Columns: longer lines are hard to read."""


class _Heading(markdown.Heading):
    """All of them at the left: in a conversation a centred line is lost."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class _CodeBlock(markdown.CodeBlock):
    """In the terminal's own colours, on its own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip(), self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 2),
            background_color="default",
        )  # fmt: skip


class _ListItem(markdown.ListItem):
    """Numbers as they were written, and always with room for two digits: the tenth item must not move the others."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        width = max(2, len(str(last_number))) + 2
        style = console.get_style("markdown.item.number", default="none")
        lines = console.render_lines(self.elements, options.update(width=options.max_width - width), style=self.style)
        for index, line in enumerate(lines):
            yield Segment(f"{number}. ".rjust(width) if index == 0 else " " * width, style)
            yield from line
            yield Segment.line()


class _TableElement(markdown.TableElement):
    """Cells that are too long go on in the next line instead of being cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE, pad_edge=False, style="markdown.table.border", collapse_padding=True)
        if self.header is not None and self.header.row is not None:
            for cell in self.header.row.cells:
                heading = cell.content.copy()
                heading.stylize("markdown.table.header")
                table.add_column(heading, overflow="fold")
        if self.body is not None:
            for row in self.body.rows:
                table.add_row(*(cell.content for cell in row.cells))
        yield table


class Markdown(markdown.Markdown):
    """rich's, with our parser and our elements, and without hyperlinks: a link shows where it leads."""

    elements = {  # noqa: RUF012  # rich declares it as a class variable
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "list_item_open": _ListItem,
        "table_open": _TableElement,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = _PARSER.parse(text)
        _keep_line_breaks(self.parsed)


def _keep_line_breaks(tokens: list[Token]) -> None:
    """A model that begins a new line means it: a poem, an address."""
    for token in tokens:
        if token.type == "softbreak":
            token.type = "hardbreak"
        if token.children:
            _keep_line_breaks(token.children)


def finished(text: str) -> int:
    """How many characters at the beginning of an unfinished text are blocks that what follows cannot change.

    The last block is never finished: a paragraph may become a heading or a table, a list may go on. A line without its
    end counts only below an empty line, and not below a list, which may go on in it (a `2` that becomes `2. two`).
    """
    blocks = _blocks(text)
    if len(blocks) > 1:
        before = text[: blocks[-1].start]
        separate = before.endswith("\n\n") and not blocks[-2].kind.endswith("list_open")
        if not separate and "\n" not in text[blocks[-1].start :]:
            blocks = _blocks(text[: text.rfind("\n") + 1])
    return blocks[-1].start if blocks else 0


class _Block(NamedTuple):
    kind: str
    start: int


def _blocks(text: str) -> list[_Block]:
    """The blocks of a text: their kinds, and where they start."""
    tokens = [token for token in _PARSER.parse(text) if token.level == 0 and token.nesting >= 0]
    lines, starts = 0, 0
    found = []
    for token in tokens:
        if token.map is not None:
            # Counted as markdown-it counts them: it knows no other ends of lines.
            for _ in range(token.map[0] - lines):
                starts = text.index("\n", starts) + 1
            lines = token.map[0]
            found.append(_Block(token.type, starts))
    return found


def render(console: Console, text: str) -> list[list[Segment]]:
    """The lines that a piece of Markdown takes on this terminal: block by block, an empty line between them.

    Blocks look the same whether they are rendered alone or together; rich by itself puts one to three lines there.
    """
    options = console.options.update(width=min(console.width, WIDEST), height=None)
    starts = [block.start for block in _blocks(text)]
    lines: list[list[Segment]] = []
    for start, end in pairwise([*starts, len(text)]):
        rendered = _rendered(console, options, text[start:end])
        block = _without_empty_ends([list(_without_padding(line)) for line in rendered])
        lines += [[], *block] if lines and block else block
    return lines


def _rendered(console: Console, options: ConsoleOptions, block: str) -> list[list[Segment]]:
    try:
        return console.render_lines(Markdown(block), options, pad=False)
    except Exception:  # noqa: BLE001  # a model can write what no author of a renderer has thought of: show it plain
        return console.render_lines(Text(block), options, pad=False)


def _without_empty_ends(lines: list[list[Segment]]) -> list[list[Segment]]:
    full = [number for number, line in enumerate(lines) if text_of(line).strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _without_padding(line: list[Segment]) -> Iterator[Segment]:
    """rich fills lines with blanks, which get into what a user copies and wrap when the window gets narrower."""
    kept = list(line)
    while kept and not kept[-1].text.rstrip(" ") and not (kept[-1].style and kept[-1].style.bgcolor):
        kept.pop()
    for number, segment in enumerate(kept, start=1):
        last = number == len(kept) and not (segment.style and segment.style.bgcolor)
        yield Segment(segment.text.rstrip(" "), segment.style) if last else segment


def text_of(line: list[Segment]) -> str:
    """A line without its styles."""
    return "".join(segment.text for segment in line)
