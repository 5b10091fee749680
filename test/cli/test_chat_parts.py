"""The parts of a conversation that need no terminal and no server."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llamastream.cli import conversation as saved
from llamastream.cli.commands import COMMANDS, Command, Line, Mistake, Question, candidates, help_lines, parse
from llamastream.cli.conversation import Conversation, State
from llamastream.cli.lineinput import History, history_path, read_entry
from llamastream.errors import InvalidRequestError
from llamastream.printable import one_line, printable
from llamastream.types import Result, Stats, ToolCall

# -- what a terminal may see --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]0;title\x07rest", "␛]0;title␇rest"),
        ("\x1b]52;c;cm0gLXJm\x1b\\", "␛]52;c;cm0gLXJm␛\\"),
        ("safe\rEVIL", "safeEVIL"),
        ("a\r\nb", "a\nb"),
        ("\x9b2J\x90", "�2J�"),
        ("\x00\x08\x7f", "␀␈␡"),
        ("txt.\u202eexe", "txt.exe"),
        ("🦙 Käse 猫", "🦙 Käse 猫"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert "".join(printable(piece) for piece in text) == shown, "pieces are as harmless as the whole"


def test_one_line() -> None:
    assert one_line(" a\n\tb\x1b ") == "a b␛"


# -- commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("  \n ", None),
        (" Who are you? ", Question("Who are you?")),
        ("/help", Command("/help")),
        (" /reset ", Command("/reset")),
        ("/exit", Command("/quit")),
        ("/system", Command("/system")),
        ("/system  You are brief. ", Command("/system", "You are brief.")),
        ("/system You are brief.\nAnd kind.", Command("/system", "You are brief.\nAnd kind.")),
        ("/save my talk.md", Command("/save", "my talk.md")),
        ("/save! talk.md", Command("/save!", "talk.md")),
        ("/reasoning off", Command("/reasoning", "off")),
        ("//etc/hosts?", Question("/etc/hosts?")),
        ("// a comment\nint main()", Question("// a comment\nint main()")),
        ("/* a comment\n*/", Question("/* a comment\n*/")),
        ("/usr/bin\n/usr/lib", Question("/usr/bin\n/usr/lib")),
        ("/hlep", Mistake("there is no command /hlep; did you mean /help?")),
        ("/xyzzy", Mistake("there is no command /xyzzy; /help shows those there are")),
        (
            "/etc/hosts",
            Mistake("there is no command /etc/hosts; a question that begins with a slash is written with two: "
                    "//etc/hosts"),
        ),
        ("/save", Mistake("/save needs an argument: /save FILE")),
        ("/reset all", Mistake("/reset takes no argument")),
        ("/reasoning maybe", Mistake("/reasoning takes on or off, not 'maybe'")),
    ],
)  # fmt: skip
def test_parse(text: str, line: Line) -> None:
    assert parse(text) == line


def test_help_names_every_command() -> None:
    typed = [line for line, _ in help_lines()]
    assert all(any(line.split()[0] == spec.name for line in typed) for spec in COMMANDS)


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("talk one.md", "talk.json", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "a.md").touch()
    table = {
        "": [],
        "tal": [],
        "/re": ["/reset", "/retry", "/reasoning "],
        "/sa": ["/save ", "/save! "],
        "/save ta": ["/save talk one.md", "/save talk.json", "/save talks/"],
        "/save! talks/": ["/save! talks/a.md"],
        "/load talk o": ["/load talk one.md"],
        "/load .h": ["/load .hidden"],
        "/load no/where": [],
        "/reasoning o": ["/reasoning on", "/reasoning off"],
        "/nonsense x": [],
        "/help x": [],
    }
    assert {line: candidates(line) for line in table} == table


# -- what is typed ------------------------------------------------------------------------------------------


def typed(*lines: str) -> tuple[Callable[[str], str], list[str]]:
    """A function that gives these lines, then the end of input, and the prompts that it was called with."""
    left, prompts = list(lines), list[str]()

    def read(prompt: str) -> str:
        prompts.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return read, prompts


@pytest.mark.parametrize(
    ("lines", "entry"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["a backslash \\\\"], "a backslash \\\\"),
        (["ends\\"], "ends"),
        (['"""', "one", "", "  two", '"""'], "one\n\n  two"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""one"""'], "one"),
        (['"""', "never closed"], "never closed"),
        (['"""', "/help", '"""'], "//help"),
        (['/system """You are', 'brief."""'], "/system You are\nbrief."),
        (['What is """ in Python?'], 'What is """ in Python?'),
        (["pasted\nin one\n  go"], "pasted\nin one\n  go"),
        ([""], ""),
    ],
)
def test_an_entry_may_take_several_lines(lines: list[str], entry: str) -> None:
    read, prompts = typed(*lines)
    assert read_entry(read) == entry
    assert prompts[0] == "> "
    assert set(prompts[1:]) <= {". "}


def test_the_end_of_input_before_anything_is_the_end() -> None:
    with pytest.raises(EOFError):
        read_entry(typed()[0])


# -- history ------------------------------------------------------------------------------------------------


def test_history_keeps_entries_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "state" / "llamastream" / "history"
    path.parent.mkdir(parents=True)
    path.touch(0o644)  # as some other program may have left it
    history = History(path)
    for entry in ("one", "two\nlines", "käse 🧀"):
        history.add(entry)
    assert History(path).load() == ["one", "two\nlines", "käse 🧀"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_is_bounded(tmp_path: Path) -> None:
    history = History(tmp_path / "new" / "history", length=3)
    for number in range(10):
        history.add(str(number))
    history.add("x" * 100_000)
    assert history.load() == ["7", "8", "9"]
    assert (tmp_path / "new" / "history").read_text() == '"7"\n"8"\n"9"\n'
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["history"]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_history_survives_nonsense_and_can_be_off(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'\xff\xfe\n{"a": 1}\n"good"\n"cut')
    assert History(path).load() == ["good"]
    off = History(None)
    off.add("secret")
    assert off.load() == []
    unwritable = History(path / "below a file")
    unwritable.add("lost")
    assert unwritable.load() == []


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_path({}) == tmp_path / ".local/state/llamastream/history"
    assert history_path({"XDG_STATE_HOME": "/state"}) == Path("/state/llamastream/history")
    assert history_path({"XDG_STATE_HOME": "relative"}) == tmp_path / ".local/state/llamastream/history"


# -- the conversation ---------------------------------------------------------------------------------------


def talk(*turns: tuple[str, str, State], system: str | None = None) -> Conversation:
    conversation = Conversation(system)
    for question, answer, state in turns:
        conversation.ask(question)
        conversation.answered(Result(answer, stats=Stats(chunks=1)), state)
    return conversation


def said(messages: list[dict[str, str]]) -> list[str]:
    return [f"{message['role'][0]}:{message['content']}" for message in messages]


def test_a_question_takes_all_before_it_along() -> None:
    conversation = talk(("a", "A", "complete"), ("b", "B, but", "interrupted"), system="S")
    assert said(conversation.ask("c")) == ["s:S", "u:a", "a:A", "u:b", "a:B, but", "u:c"]


def test_questions_without_an_answer_are_left_out_later() -> None:
    conversation = talk(("a", "", "broken"), ("b", "", "interrupted"))
    assert said(conversation.messages()) == ["u:b"]
    assert said(conversation.ask("c")) == ["u:c"]


def test_retry_drops_the_last_answer_and_asks_again() -> None:
    conversation = talk(("a", "A", "complete"), ("b", "B", "complete"))
    assert said(conversation.retry() or []) == ["u:a", "a:A", "u:b"]
    conversation.answered(Result("better"), "complete")
    assert said(conversation.messages()) == ["u:a", "a:A", "u:b", "a:better"]
    assert Conversation().retry() is None


def test_reset_keeps_the_system_prompt() -> None:
    conversation = talk(("a", "A", "complete"), system="S")
    conversation.reset()
    assert said(conversation.messages()) == ["s:S"]
    assert conversation.last_stats is None


def rich_talk() -> Conversation:
    conversation = talk(("a", "A", "complete"), ("b", "B, bu", "interrupted"), system="S")
    conversation.ask("c")
    call = ToolCall("1", "add", '{"x": 1}')
    conversation.answered(Result("C", reasoning="hm\n\nso", tool_calls=(call,)), "complete")
    conversation.ask("d")
    return conversation


def test_saved_as_json_it_can_be_sent_and_loaded() -> None:
    text = saved.to_json(rich_talk(), "demo")
    data = json.loads(text)
    assert data["model"] == "demo"
    assert [message["role"][0] for message in data["messages"]] == list("suauauau"[:8])
    assert data["messages"][4] == {"role": "assistant", "content": "B, bu", "state": "interrupted"}
    loaded = saved.from_json(text)
    assert (loaded.system, loaded.turns) == (rich_talk().system, rich_talk().turns)
    assert saved.to_json(loaded, "demo") == text


def test_saved_as_markdown_it_can_be_read() -> None:
    assert saved.to_markdown(rich_talk(), "demo") == (
        "# Conversation with demo\n\n## System prompt\n\nS\n\n"
        "## You\n\na\n\n## Model\n\nA\n\n"
        "## You\n\nb\n\n## Model\n\nB, bu\n\n*(stopped here)*\n\n"
        "## You\n\nc\n\n## Model\n\n> hm\n>\n> so\n\nC\n\nTool call: `add({\"x\": 1})`\n\n"
        "## You\n\nd\n\n## Model\n\n*(no answer)*\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "{}", '{"messages": 1}', '{"messages": [{"role": "tool", "content": ""}]}',
        '{"messages": [{"role": "assistant", "content": "first"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}]}',
    ],
)  # fmt: skip
def test_what_is_no_saved_conversation_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="this is no"):
        saved.from_json(text)


def test_an_unreadable_folder_completes_to_nothing(tmp_path: Path) -> None:
    assert candidates(f"/load {tmp_path}/missing/x") == []
    assert candidates(f"/load {tmp_path}{os.sep}") == []
