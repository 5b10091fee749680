"""An answer's Markdown for the terminal: nothing of the text gets lost in it, and nothing in it is obeyed.

rich leaves out what a browser would not show (HTML, link targets, pictures' addresses, definitions of links) and cuts
table cells that do not fit. Whoever reads a model's answer wants to see all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box, markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table

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

    The last block is never finished: a paragraph may become a heading or a table, a list may go on. Nor is a line
    without its end.
    """
    complete = text[: text.rfind("\n") + 1]
    starts = [token.map[0] for token in _PARSER.parse(complete) if token.level == 0 and token.map is not None]
    if not starts or starts[-1] == 0:
        return 0
    # Counted as markdown-it counts them: it knows no other ends of lines.
    position = 0
    for _ in range(starts[-1]):
        position = complete.index("\n", position) + 1
    return position


def render(console: Console, text: str) -> list[list[Segment]]:
    """The lines that a piece of Markdown takes on this terminal."""
    options = console.options.update(width=min(console.width, WIDEST), height=None)
    lines = console.render_lines(Markdown(text), options, pad=False)
    return [list(_without_padding(line)) for line in lines]


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
