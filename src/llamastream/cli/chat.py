"""`llamastream chat`: one question, the answer streamed to the terminal; or a conversation."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llamastream.cli.options import with_settings
from llamastream.cli.screen import Screen, print_json
from llamastream.cli.status import StatusRelay
from llamastream.cli.toolcalls import show
from llamastream.client import Stream, StreamingClient
from llamastream.compose import server_for
from llamastream.errors import InvalidRequestError, LlamaStreamError
from llamastream.settings import ClientSettings

MAX_STDIN_BYTES = 64 * 1024 * 1024


def _errors_as_json(command: Callable[..., None]) -> Callable[..., None]:
    """With --json, whatever goes wrong is an object on stdout, too: also in the settings, before the first event."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            command(**arguments)
        except LlamaStreamError as error:
            if arguments.get("json"):
                print_json(
                    {"type": "error", "error": type(error).__name__, "message": error.message, "status": error.status}
                )
            raise

    return run


@_errors_as_json
@with_settings(ClientSettings, "client")
def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="The question; - reads it from standard input. Without it a conversation begins.",
            show_default=False,
        ),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system prompt.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event to stdout.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Start the demo engine, even if a server runs.")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="Save a picture of the terminal to this file.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="In a conversation: plain text, no rendered Markdown.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="In a conversation: remember what was typed.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone: no notes, no summary.")] = False,
    client: ClientSettings,
    client_sources: dict[str, str],
) -> None:
    """Stream the answer to one question or, without PROMPT, hold a conversation.

    Without a server at the default address, the built-in demo engine answers. The answer goes to stdout, all else to
    stderr. Ctrl-C stops the answer and frees the slot on the server.
    """
    explicit = client_sources["base_url"] != "default"
    if demo and client_sources["base_url"] == "--url":
        raise InvalidRequestError("give either --demo or --url: the one starts a server, the other names one")
    if svg is not None and not svg.absolute().parent.is_dir():
        raise InvalidRequestError(f"--svg {svg}: the directory {svg.absolute().parent} does not exist")
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        if json or svg is not None or not sys.stdout.isatty():
            what = "--json" if json else "--svg" if svg is not None else "without a terminal to answer to, it"
            raise InvalidRequestError(f'{what} needs a question, as in: llamastream chat "Who are you?"')
        _converse(client, system, demo=demo, explicit=explicit, plain=plain, history=history, quiet=quiet)
        return
    question = _read_question("-" if prompt is None else prompt)
    screen = Screen(quiet=quiet or json, record=svg is not None)
    screen.command(f"llamastream chat {shlex.quote(question)}")
    relay = StatusRelay()
    relay.show = screen.status
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    with (
        server_for(client, demo=demo, explicit_url=explicit, notify=screen.note) as settings,
        StreamingClient(settings=settings, listeners=[relay]).stream_chat(messages) as stream,
    ):
        try:
            _show_json(stream) if json else _show(stream, screen)
        except KeyboardInterrupt:
            stream.close()
            screen.end_answer()
            screen.summary(stream.stats, "cancelled")
            raise typer.Exit(128 + signal.SIGINT) from None
        except LlamaStreamError as error:
            screen.end_answer()
            if not json and error.partial is not None and error.partial.stats.chunks:
                screen.summary(error.partial.stats, "broken off")
            raise
    if svg is not None:
        screen.save_picture(svg)


def _converse(
    client: ClientSettings, system: str | None, *, demo: bool, explicit: bool, plain: bool, history: bool, quiet: bool
) -> None:
    # Only here: one question has no use for all of this, and should not wait for it.
    from rich.console import Console

    from llamastream.cli.commands import candidates
    from llamastream.cli.lineinput import History, LineReader, history_path
    from llamastream.cli.repl import Repl

    console = Console(highlight=False)
    simple = console.is_dumb_terminal or bool(os.environ.get("NO_COLOR"))
    reader = LineReader(History(history_path(os.environ) if history else None), candidates, styled=not simple)
    screen = Screen(quiet=quiet)
    relay = StatusRelay()
    with (
        server_for(client, demo=demo, explicit_url=explicit, notify=screen.note) as settings,
        StreamingClient(settings=settings, listeners=[relay]) as running,
    ):
        Repl(running, console, reader, relay=relay, system=system, plain=plain or simple, quiet=quiet).run()


def _read_question(prompt: str) -> str:
    if prompt != "-":
        if not prompt.strip():
            raise InvalidRequestError("the question is empty; give some text, or - to read standard input")
        return prompt
    if sys.stdin is None:
        raise InvalidRequestError("standard input is closed; give the question as an argument")
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise InvalidRequestError(f"standard input is larger than {MAX_STDIN_BYTES >> 20} MiB")
    text = data.decode("utf-8", "replace").strip()
    if not text:
        raise InvalidRequestError(
            "standard input is empty; pipe the question in, as in: echo 'Who are you?' | llamastream chat -"
        )
    return text


def _show(stream: Stream, screen: Screen) -> None:
    end = show(stream, screen.answer, screen.reasoning, screen.note)
    if end is not None:
        screen.end_answer()
        screen.summary(end.stats, end.finish_reason)


def _show_json(stream: Stream) -> None:
    for event in stream.events():
        print_json(event)
