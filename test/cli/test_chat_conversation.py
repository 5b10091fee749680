"""`llamastream chat` as a conversation, in a real terminal, with a real server."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from commandline import ROOT
from llamastream.engine import Engine
from llamastream.engine.demo import demo_questions
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from terminal import COMMAND, Chat, terminal_environ

_ENDLESS = (
    "import functools; from llamastream.client import StreamingClient as C; from llamastream.cli.main import main;"
    "C.stream_chat = functools.partialmethod(C.stream_chat, ignore_eos=True); main()"
)
ENDLESS = [sys.executable, "-c", _ENDLESS, "chat"]
"""The same command, with answers that only end when the context is full."""
ANSWERS = {question.question: question.answer for question in demo_questions()}
LEAVE = "Ctrl-D leaves"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return terminal_environ(tmp_path)


@pytest.fixture
def chat(engine: Engine, environ: dict[str, str]) -> Iterator[Chat]:
    with Chat("--url", engine.url, "--temperature", "0", "--plain", environ=environ) as running:
        running.expect(LEAVE)
        yield running


def test_a_conversation_from_greeting_to_goodbye(chat: Chat, environ: dict[str, str]) -> None:
    assert "demo model answers" in chat.raw.decode()
    assert sum(question in chat.raw.decode() for question in ANSWERS) == 3
    for question in ("What is a slot?", "Write a poem."):
        chat.ask(question)
        assert chat.expect("first token").strip() == ANSWERS[question]
    chat.ask("/stats")
    assert re.search(r"cached tokens +\d", chat.expect("questions so far"))
    chat.ask("/retry")
    assert chat.expect("first token").strip() == ANSWERS["Write a poem."]
    chat.ask("/hepl")
    chat.expect("there is no command /hepl; did you mean /help?")
    chat.ask("/system You are brief.")
    chat.expect("system prompt set")
    chat.ask("/reset")
    chat.expect("with the same system prompt")
    chat.ask("/stats")
    chat.expect("nothing was answered yet")
    chat.ask("/help")
    chat.expect("/reasoning [on|off]")
    chat.expect("> ")
    chat.type("\x04")
    assert chat.end() == 0
    history = Path(environ["HOME"]) / ".local/state/llamastream/history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert json.loads(history.read_text().splitlines()[0]) == "What is a slot?"


def test_several_lines_completion_and_history(chat: Chat) -> None:
    chat.ask('"""')
    chat.expect(". ")
    chat.type('What is\n"""\n')
    chat.expect("first token")
    chat.expect("> ")
    chat.type("\x1b[200~What\nis a slot?\x1b[201~")  # as a terminal pastes
    chat.expect("is a slot?")
    chat.type("\n")
    chat.expect("first token")
    chat.expect("> ")
    chat.type("/hel\t")
    chat.expect("/help")
    chat.type("\n")
    chat.expect("/quit")
    chat.expect("> ")
    chat.type("\x1b[A\x1b[A")  # up, up
    chat.expect("is a slot?")
    chat.interrupt("\n")
    chat.ask("/quit")
    assert chat.end() == 0


def test_saving_and_loading(chat: Chat, tmp_path: Path) -> None:
    chat.ask("What is a slot?")
    chat.expect("first token")
    for name in ("talk.json", "talk.md"):
        chat.ask(f"/save {tmp_path / name}")
        chat.expect("saved as")
    chat.ask(f"/save {tmp_path / 'talk.md'}")
    chat.expect("exists; /save! ")
    chat.ask(f"/save! {tmp_path / 'talk.md'}")
    chat.expect("saved as")
    chat.ask(f"/save {tmp_path / 'talk.pdf'}")
    chat.expect("must end in .md or .json")
    chat.ask(f"/save {tmp_path / 'no' / 'talk.md'}")
    chat.expect("cannot be written")
    chat.ask(f"/load {tmp_path / 'talk.json'}")
    chat.expect("1 question loaded")
    chat.ask(f"/load {tmp_path / 'talk.md'}")
    chat.expect("no saved conversation")
    answer = ANSWERS["What is a slot?"]
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1] == {"role": "assistant", "content": answer}
    assert f"## You\n\nWhat is a slot?\n\n## Model\n\n{answer}\n" in (tmp_path / "talk.md").read_text()


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(
    engine: Engine, environ: dict[str, str], slots_free: Callable[[], float], tmp_path: Path
) -> None:
    with Chat("--url", engine.url, environ=environ, command=ENDLESS) as chat:
        chat.ask("Count from one to fifty in words.")
        chat.expect("one")
        chat.type("typed too early\x03\x03")  # the second one must do no harm
        chat.expect("stopped")
        assert slots_free() < 1.0
        chat.ask(f"/save {tmp_path / 'talk.json'}")
        chat.expect("saved as")
        message = json.loads((tmp_path / "talk.json").read_text())["messages"][-1]
        assert message["state"] == "interrupted"
        assert message["content"]
        assert b"^C" not in chat.raw
        chat.expect("> ")
        chat.type("half a line")
        chat.expect("half a line")
        chat.interrupt("> ")
        chat.interrupt("Ctrl-D or /quit leaves")
        chat.ask("/quit")
        assert chat.end() == 0


def test_the_demo_engine_stays_for_the_conversation_and_goes_with_it(environ: dict[str, str]) -> None:
    with Chat("--demo", environ=environ, size=(24, 80)) as chat:
        chat.expect("demo model on")
        chat.expect(LEAVE)
        children = psutil.Process(chat.process.pid).children(recursive=True)
        assert children
        for question in ("Write a poem.", "What is a slot?"):
            chat.ask(question)
            chat.expect(ANSWERS[question].split("\n")[-1][-12:])
            chat.expect("stop")
        chat.expect("> ")
        chat.interrupt("\n")  # the whole foreground group gets the signal, the engine too
        chat.ask("Hi")
        chat.expect("stop")
        chat.expect("> ")
        chat.type("\x04")
        assert chat.end() == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_a_lost_server_is_one_line_and_the_conversation_goes_on(environ: dict[str, str]) -> None:
    environ["LLAMASTREAM_MAX_RETRIES"] = "0"
    whole = sse_answer(["Hel", "lo"])
    broken = Script(whole, cut_at=whole.index(b"lo") + 20)
    nothing = Script(http_answer("404 Not Found", b"{}"))
    with ServerDouble(nothing, broken) as server, Chat("--url", server.url, environ=environ) as chat:
        chat.expect(LEAVE)
        chat.ask("hi")
        chat.expect("Hel")
        chat.expect("broken off")
        chat.expect("/retry asks again")
        server.close()
        chat.ask("/retry")
        chat.expect("the server is not there; /retry asks again")
        chat.expect("> ")
        chat.type("\x04")
        assert chat.end() == 0


def test_what_is_typed_during_an_answer_waits_for_the_prompt(environ: dict[str, str]) -> None:
    with (
        ServerDouble(Script(http_answer("404 Not Found", b"{}")), Script(sse_answer(["late"]), hold=True)) as server,
        Chat("--url", server.url, environ=environ) as chat,
    ):
        chat.ask("hi")
        assert server.wait_for(lambda double: len(double.requests) == 2)
        chat.type("/reasoning\n/quit\n")
        server.release(1)
        assert "/" not in chat.expect("late")
        chat.expect("reasoning is shown")
        assert chat.end() == 0


EVIL = ["Hi \x1b[2", "J\x1b]0;owned\x07\x1b]52;c;cm0=\x1b\\", "\x9b31m\r", "bye\n\nend"]


@pytest.mark.parametrize("arguments", [[], ["--plain"], ["a question"]])
def test_no_terminal_obeys_a_model(environ: dict[str, str], arguments: list[str]) -> None:
    with (
        ServerDouble(Script(sse_answer(EVIL))) as server,
        Chat("--url", server.url, *arguments, environ=environ) as chat,
    ):
        if arguments != ["a question"]:
            chat.ask("hi")
        chat.expect("␛[2J␛]0;owned␇")
        chat.expect("end")
        chat.expect("stop")
        for harmful in (b"\x1b[2J", b"\x1b]0", b"\x1b]52", b"\x07", "\x9b".encode()):
            assert harmful not in chat.raw.replace(b"\x1b[?2004", b"")


def test_a_pipe_gets_what_the_model_wrote(environ: dict[str, str]) -> None:
    with ServerDouble(Script(sse_answer(EVIL))) as server:
        done = subprocess.run(
            [*COMMAND, "--url", server.url], input=b"hi", env=environ, capture_output=True, timeout=30, cwd=ROOT
        )
    assert (done.returncode, done.stdout.decode()) == (0, "".join(EVIL) + "\n")


def test_reasoning_and_tool_calls_are_shown(environ: dict[str, str]) -> None:
    events = sse_events(["**Yes**"])
    reasoning = events[1].replace(b'"content":"**Yes**"', b'"reasoning_content":"let me think"')
    call = b'"tool_calls":[{"index":0,"id":"1","type":"function","function":{"name":"add","arguments":"{}"}}]'
    tool = events[1].replace(b'"content":"**Yes**"', call)
    answer = Script(chunked([events[0], reasoning, *events[1:2], tool, *events[2:]]))
    with ServerDouble(answer) as server, Chat("--url", server.url, environ=environ) as chat:
        chat.ask("hi")
        chat.expect("let me think\n\nYes")
        chat.expect("the model calls the tool add")
        assert b"\x1b[2;3mlet me think" in chat.raw
        assert b"\x1b[1mYes" in chat.raw
        chat.ask("/reasoning off")
        chat.expect("reasoning is hidden")
        chat.ask("hi")
        assert "think" not in chat.expect("Yes")


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_simple_terminals_get_plain_text(engine: Engine, environ: dict[str, str], variable: tuple[str, str]) -> None:
    environ.update([variable])
    with Chat("--url", engine.url, "--temperature", "0", "-q", "--no-history", environ=environ) as chat:
        chat.ask("Show me a Python example.")
        *code, last = ANSWERS["Show me a Python example."].split("\n")
        assert "\n".join(code) in chat.expect(last)
        assert any("```python" in line for line in code)
        chat.expect("> ")
        chat.type("\x04")
        assert chat.end() == 0
        assert not re.search(rb"\x1b\[\d*;?3\dm", chat.raw)
    assert not (Path(environ["HOME"]) / ".local").exists()


@pytest.mark.parametrize("arguments", [["--json"], ["--svg", "x.svg"]])
def test_what_needs_a_question_says_so(environ: dict[str, str], arguments: list[str]) -> None:
    with Chat(*arguments, environ=environ) as chat:
        chat.expect(f"{arguments[0]} needs a question")
        assert chat.end() == 1
