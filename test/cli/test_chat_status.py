"""What somebody sees who waits for an answer: one dim line that says why, and goes when the answer comes."""

from __future__ import annotations

import io
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from rich.console import Console

from commandline import ROOT, run
from llamastream.cli.render import MarkdownView, PlainView, View
from llamastream.cli.screen import Screen, stats_rows
from llamastream.cli.status import StatusLine, StatusRelay, status_line
from llamastream.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    InternalServerError,
    LlamaStreamError,
    ModelLoadingError,
    RateLimitedError,
    UnavailableError,
)
from llamastream.events import AttemptStarted, RequestStarted, RetryScheduled
from llamastream.testing import Script, ServerDouble, http_answer, sse_answer
from llamastream.types import Stats
from ports import free_port
from terminal import COMMAND, Chat, terminal_environ

LOADING = Script(http_answer("503 Service Unavailable", b'{"error":{"message":"Loading model","code":503}}'))
BUSY = Script(http_answer("503 Service Unavailable", b'{"error":{"message":"busy","code":503}}'))
NO_MODELS = Script(http_answer("404 Not Found", b"{}"))
ANSWER = Script(sse_answer(["Good ", "morning"]), hold=True)
SAYS_LOADING = "server is loading its model, trying again…"


# -- what is said -------------------------------------------------------------------------------------------


def because(error: LlamaStreamError, reason: Exception) -> LlamaStreamError:
    error.__cause__ = reason
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModelLoadingError("x", status=503), SAYS_LOADING),
        (because(ConnectError("x"), ConnectionRefusedError()), "connection refused, attempt 2 in 0.4 s"),
        (because(ConnectError("x"), socket.gaierror()), "host name not known, attempt 2 in 0.4 s"),
        (because(ConnectError("x"), FileNotFoundError()), "no server at the socket, attempt 2 in 0.4 s"),
        (ConnectError("x"), "no connection, attempt 2 in 0.4 s"),
        (ConnectTimeoutError("x"), "no connection in time, attempt 2 in 0.4 s"),
        (ConnectionLostError("x"), "connection lost, attempt 2 in 0.4 s"),
        (UnavailableError("x", status=503), "server is unavailable (503), attempt 2 in 0.4 s"),
        (RateLimitedError("x", status=429), "server has too much to do (429), attempt 2 in 0.4 s"),
        (InternalServerError("x", status=500), "server answered 500, attempt 2 in 0.4 s"),
        (LlamaStreamError("some\nthing; do this"), "some thing, attempt 2 in 0.4 s"),
    ],
)
def test_a_retry_says_what_is_wrong_and_that_it_goes_on(error: Exception, says: str) -> None:
    assert status_line(RetryScheduled(1, 1, error, 0.42)) == says


def test_an_attempt_at_once_names_no_time() -> None:
    assert status_line(RetryScheduled(1, 2, ConnectionLostError("x"), 0.0)) == "connection lost, attempt 3"


def test_what_needs_no_patience_is_not_shown() -> None:
    assert status_line(RequestStarted(1, "http://x")) is None
    assert status_line(AttemptStarted(1, 1, False)) is None


def test_the_relay_tells_only_who_shows_something() -> None:
    relay = StatusRelay()
    event = RetryScheduled(1, 1, ModelLoadingError("x"), 0.5)
    relay(event)
    shown: list[str] = []
    relay.show = shown.append
    relay(event)
    relay(AttemptStarted(1, 2, False))
    assert shown == [SAYS_LOADING]


# -- how it is shown ----------------------------------------------------------------------------------------


def terminal(width: int = 40) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, height=20, color_system=None), file


def test_a_line_takes_the_place_of_the_one_before() -> None:
    console, file = terminal()
    line = StatusLine(console)
    line.show("one")
    line.show("two")
    line.clear()
    line.clear()
    assert file.getvalue() == "one\r\x1b[Ktwo\r\x1b[K"


def test_a_long_line_is_cut_since_a_wrapped_one_could_not_be_erased() -> None:
    console, file = terminal(width=10)
    StatusLine(console).show("猫" * 20)
    assert file.getvalue() == "猫" * 4 + "…"


def test_where_nothing_can_be_erased_it_is_a_line_and_not_twice() -> None:
    file = io.StringIO()
    line = StatusLine(Console(file=file, width=10))
    for text in ("loading the model", "loading the model", "gone"):
        line.show(text)
    line.clear()
    assert file.getvalue() == "loading the model\ngone\n"


@pytest.mark.parametrize("kind", [PlainView, MarkdownView])
def test_text_takes_the_place_of_the_status(kind: type[PlainView] | type[MarkdownView]) -> None:
    console, file = terminal()
    view: View = kind(console)
    view.status("waiting \x1b[2J")
    view.text("Hello")
    view.end()
    before, _, after = file.getvalue().partition("\r\x1b[K")
    assert before == "waiting ␛[2J"
    assert "Hello" in after
    assert "waiting" not in after


class Seen(io.StringIO):
    """Says when a text has been written."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.written = threading.Event()

    def write(self, data: str) -> int:
        if self._text in data:
            self.written.set()
        return super().write(data)


def test_in_the_middle_of_markdown_it_stands_below_the_text() -> None:
    file = Seen("waiting")
    view = MarkdownView(Console(file=file, force_terminal=True, width=40, height=20, color_system=None))
    view.text("Half an ans")
    view.status("waiting")
    assert file.written.wait(10)
    assert "Half an ans\nwaiting\n" in file.getvalue()
    view.text("wer")
    view.end()
    last = file.getvalue().rpartition("\x1b[J")[2]
    assert "Half an answer" in last
    assert "waiting" not in last


def test_in_the_middle_of_a_plain_line_nothing_is_shown() -> None:
    console, file = terminal()
    view = PlainView(console)
    view.text("Half an ans")
    view.status("waiting")
    view.text("wer\n")
    assert file.getvalue() == "Half an answer\n"


def test_quiet_means_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(quiet=True).status("waiting")
    assert capsys.readouterr() == ("", "")


# -- for real -----------------------------------------------------------------------------------------------


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return terminal_environ(tmp_path)


@pytest.mark.parametrize("arguments", [["hi"], [], ["--plain"]], ids=["question", "conversation", "plain"])
def test_a_server_that_loads_its_model_says_so_until_it_answers(environ: dict[str, str], arguments: list[str]) -> None:
    scripts = [LOADING, LOADING, ANSWER] if arguments == ["hi"] else [NO_MODELS, LOADING, LOADING, ANSWER]
    with ServerDouble(*scripts) as server, Chat("--url", server.url, *arguments, environ=environ) as chat:
        if arguments != ["hi"]:
            chat.ask("hi")
        chat.expect(SAYS_LOADING)
        assert server.wait_for(lambda double: len(double.requests) == len(scripts))
        server.release(1)
        chat.expect("Good morning")
        chat.expect("stop")
        shown = chat.raw.decode()
        assert "\x1b[2m" + SAYS_LOADING in shown, "dim"
        assert shown.rpartition(SAYS_LOADING)[2].removeprefix("\x1b[0m").startswith("\r\x1b[K"), "and erased"


def test_a_refused_connection_says_so_until_a_server_is_there(environ: dict[str, str]) -> None:
    environ["LLAMASTREAM_MAX_RETRIES"] = "20"
    late = ServerDouble(Script(sse_answer(["late"])), port=free_port(), listen=False)
    with Chat("--url", late.url, "hi", environ=environ) as chat:
        chat.expect("connection refused, attempt 2")
        with late:
            chat.expect("late")
            chat.expect("stop")
            assert chat.end() == 0


def test_ctrl_c_while_waiting_leaves_no_status_behind(environ: dict[str, str]) -> None:
    with ServerDouble(BUSY, Script(stall=True)) as server, Chat("--url", server.url, "hi", environ=environ) as chat:
        chat.expect("server is unavailable (503), attempt 2")
        assert server.wait_for(lambda double: len(double.requests) == 2)
        chat.type("\x03")
        assert chat.end() == 130
        assert "\r\x1b[K" in chat.raw.decode().rpartition("attempt 2")[2]


def test_in_a_pipe_it_is_one_line_on_stderr(environ: dict[str, str]) -> None:
    with ServerDouble(LOADING, LOADING, Script(sse_answer(["Hello"]))) as server:
        done = subprocess.run(
            [*COMMAND, "--url", server.url, "hi"], env=environ, capture_output=True, text=True, timeout=30, cwd=ROOT
        )
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    assert done.stderr.splitlines()[:-1] == [SAYS_LOADING]
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_programs_are_not_told(environ: dict[str, str], option: str) -> None:
    with ServerDouble(LOADING, Script(sse_answer(["Hello"]))) as server:
        done = run(environ, "chat", "--url", server.url, option, "hi")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hello" in done.stdout


def test_every_figure_has_a_row_whatever_it_is() -> None:
    rows = dict(stats_rows(Stats(chunks=1234, response_cache="hit\x1b[2J"), "stop"))
    assert rows["chunks"] == "1,234"
    assert rows["response cache"].startswith("hit")
    assert "\x1b" not in rows["response cache"]
    assert "response cache" not in dict(stats_rows(Stats(), "stop"))
