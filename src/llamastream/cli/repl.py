"""The conversation at a terminal: reads a line, does what it says, shows the answer, and goes on whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamastream._version import __version__
from llamastream.cli import conversation as saved
from llamastream.cli.commands import Command, Mistake, help_lines, parse
from llamastream.cli.conversation import Conversation
from llamastream.cli.interrupts import Interrupts, without_echo
from llamastream.cli.lineinput import LineReader
from llamastream.cli.render import MarkdownView, PlainView, View
from llamastream.cli.screen import stats_rows, summary_line
from llamastream.cli.status import StatusRelay
from llamastream.cli.toolcalls import show
from llamastream.client import Stream, StreamingClient
from llamastream.engine.demo import DEMO_ALIAS, demo_questions
from llamastream.errors import LlamaStreamError, TransportError
from llamastream.printable import one_line, printable
from llamastream.types import Result

MAX_LOADED_BYTES = 64 * 1024 * 1024
_SUGGESTED_TOPICS = ("story", "code", "streaming")


class Repl:
    """One conversation with one server.

    Args:
        client: of the server. console: the terminal. reader: what the user types.
        relay: a listener of the client, which says what is waited for.
        plain: no Markdown, only text. quiet: no greeting and no summaries.
    """

    def __init__(
        self, client: StreamingClient, console: Console, reader: LineReader, *, relay: StatusRelay,
        system: str | None = None, plain: bool = False, quiet: bool = False,
    ) -> None:  # fmt: skip
        self._client = client
        self._console = console
        self._reader = reader
        self._relay = relay
        self._plain = plain
        self._quiet = quiet
        self._show_reasoning = True
        self._model = ""
        self._conversation = Conversation(system)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/reset": self._reset,
            "/stats": self._stats,
            "/reasoning": self._reasoning,
            "/save": self._save,
            "/save!": lambda name: self._save(name, overwrite=True),
            "/load": self._load,
        }

    def run(self) -> None:
        """Until the user leaves."""
        with Interrupts() as interrupts:
            self._greet()
            stopped_before = False
            while True:
                try:
                    with interrupts.allowed():
                        entry = self._reader.read()
                except EOFError:
                    self._console.line()
                    return
                except KeyboardInterrupt:
                    self._console.line()
                    if stopped_before:
                        self._note("Ctrl-D or /quit leaves")
                    stopped_before = True
                    continue
                stopped_before = False
                line = parse(entry)
                if isinstance(line, Mistake):
                    self._error(line.message)
                elif isinstance(line, Command):
                    if line.name == "/quit":
                        return
                    if line.name == "/retry":
                        self._answer(self._conversation.retry(), interrupts)
                    else:
                        self._commands[line.name](line.argument)
                elif line is not None:
                    self._answer(self._conversation.ask(line.text), interrupts)

    # -- an answer ----------------------------------------------------------------------------------------

    def _answer(self, messages: list[dict[str, Any]] | None, interrupts: Interrupts) -> None:
        if messages is None:
            self._note("nothing was asked yet")
            return
        view = self._view()
        self._relay.show = None if self._quiet else view.status
        problem: LlamaStreamError | None = None
        stream: Stream | None = None
        state: saved.State = "complete"
        result = Result()
        with without_echo():
            try:
                with interrupts.allowed():
                    stream = self._client.stream_chat(messages)
                    show(stream, view.text, view.reasoning, view.note)
                result = stream.result()
            except KeyboardInterrupt:
                state = "interrupted"
                if stream is not None:
                    stream.close()
                    result = stream.result()
            except LlamaStreamError as error:
                state, problem, result = "broken", error, error.partial or result
            finally:
                self._relay.show = None
                view.end()
        self._conversation.answered(result, state)
        if not self._quiet and (problem is None or result.stats.chunks):
            reason = {"interrupted": "stopped", "broken": "broken off"}.get(state, result.finish_reason)
            self._note(summary_line(result.stats, reason))
        if problem is not None:
            self._error(problem.message.split("\n")[0])
            lost = isinstance(problem, TransportError)
            self._note(f"{'the server is not there; ' if lost else ''}/retry asks again")
        self._console.line()

    def _view(self) -> View:
        kind = PlainView if self._plain else MarkdownView
        return kind(self._console, show_reasoning=self._show_reasoning)

    # -- commands -----------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for typed, does in help_lines():
            table.add_row(Text(typed), Text(does))
        self._console.print(table)

    def _system(self, text: str) -> None:
        if not text:
            self._note(f"system prompt: {self._conversation.system}" if self._conversation.system else "none is set")
        elif text == "off":
            self._conversation.system = None
            self._note("no system prompt any more")
        else:
            self._conversation.system = text
            self._note("system prompt set; it holds from the next question on")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._note("a new conversation" + (", with the same system prompt" if self._conversation.system else ""))

    def _stats(self, _: str) -> None:
        stats = self._conversation.last_stats
        if stats is None:
            self._note("nothing was answered yet")
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in stats_rows(stats, self._conversation.last_finish_reason):
            table.add_row(Text(name, style="dim"), Text(value))
        table.add_row(Text("questions so far", style="dim"), Text(str(len(self._conversation.turns))))
        self._console.print(table)

    def _reasoning(self, choice: str) -> None:
        if choice:
            self._show_reasoning = choice == "on"
        self._note(f"reasoning is {'shown' if self._show_reasoning else 'hidden'}")

    def _save(self, name: str, *, overwrite: bool = False) -> None:
        path = Path(name).expanduser()
        form = {".json": saved.to_json, ".md": saved.to_markdown, ".markdown": saved.to_markdown}.get(path.suffix)
        if form is None:
            self._error(f"{name}: the name must end in .md or .json, which says how to save it")
            return
        try:
            with path.open("w" if overwrite else "x", encoding="utf-8", errors="replace") as file:
                file.write(form(self._conversation, self._model))
        except FileExistsError:
            self._error(f"{name} exists; /save! {name} replaces it")
        except OSError as error:
            self._error(f"{name} cannot be written: {error.strerror or error}")
        else:
            self._note(f"saved as {name}")

    def _load(self, name: str) -> None:
        try:
            with Path(name).expanduser().open("rb") as file:
                loaded = saved.from_json(file.read(MAX_LOADED_BYTES))
        except OSError as error:
            self._error(f"{name} cannot be read: {error.strerror or error}")
        except LlamaStreamError as error:
            self._error(f"{name}: {error.message}")
        else:
            self._conversation = loaded
            count = len(loaded.turns)
            self._note(f"{count} question{'' if count == 1 else 's'} loaded; go on")

    # -- lines beside the answers -------------------------------------------------------------------------

    def _greet(self) -> None:
        try:
            self._model = next(iter(self._client.models()), "")
        except LlamaStreamError:
            self._model = ""  # a server that does not say, or none: the first question will show
        if self._quiet:
            return
        who = f"{self._model} at {self._client.base_url}" if self._model else self._client.base_url
        self._console.print(
            Text.assemble(("llamastream ", "bold"), f"{__version__} · {printable(who)}"), highlight=False
        )
        if self._model == DEMO_ALIAS:
            self._note("A demo model answers: it is tiny and knows a few dozen answers by heart. Try, for example:")
            for question in suggestions():
                self._console.print(Text(f"  {question}"))
            self._note("Long conversations are too much for it; /reset begins a new one.")
        self._note("/help shows what you can do, Ctrl-D leaves")
        self._console.line()

    def _note(self, text: str) -> None:
        self._console.print(Text(printable(text), style="dim"))

    def _error(self, text: str) -> None:
        self._console.print(Text(one_line(text), style="red"))


def suggestions() -> list[str]:
    """Three questions that the demo model can answer, of different kinds."""
    known = [question for question in demo_questions() if question.language == "en"]
    return [next(q.question for q in known if q.topic == topic) for topic in _SUGGESTED_TOPICS]
