"""The commands of a conversation: one table, from which parsing, help and completion come. Pure, apart from the look
at the file system when a file name is completed."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

Argument = Literal["none", "optional", "required", "file"]


class CommandSpec(Struct, frozen=True):
    """One command. `shown` is its argument as the help shows it; `choices` are its allowed values, any if empty."""

    name: str
    help: str
    argument: Argument = "none"
    shown: str = ""
    choices: tuple[str, ...] = ()
    alias: str = ""


COMMANDS = (
    CommandSpec("/help", "show this"),
    CommandSpec("/system", "show, set or clear the system prompt", "optional", "[TEXT|off]"),
    CommandSpec("/reset", "forget the conversation; the system prompt stays"),
    CommandSpec("/retry", "drop the last answer and ask again"),
    CommandSpec("/stats", "show what the last answer took"),
    CommandSpec("/reasoning", "show or hide the model's reasoning", "optional", "[on|off]", choices=("on", "off")),
    CommandSpec("/save", "save the conversation as Markdown (.md) or JSON (.json)", "file", "FILE"),
    CommandSpec("/save!", "the same, over a file that exists", "file", "FILE"),
    CommandSpec("/load", "go on with a conversation that was saved as JSON", "file", "FILE"),
    CommandSpec("/quit", "leave, as Ctrl-D does", alias="/exit"),
)
BY_NAME = {name: spec for spec in COMMANDS for name in (spec.name, spec.alias) if name}

KEYS = (
    ('"""', "begins and ends a question of several lines; a \\ at the end of a line goes on, too"),
    ("Ctrl-C", "stops the answer, or clears the line; the conversation goes on"),
    ("Tab", "completes commands and file names"),
    ("//…", "a question that begins with a /"),
)


class Question(Struct, frozen=True):
    """Text for the model."""

    text: str


class Command(Struct, frozen=True):
    """A command that exists, with an argument that it allows ("" for none)."""

    name: str
    argument: str = ""


class Mistake(Struct, frozen=True):
    """No command and no question; `message` says what is wrong."""

    message: str


Line: TypeAlias = Question | Command | Mistake | None


def parse(text: str) -> Line:
    """What a line, or a block of lines, means; None if it is empty."""
    text = text.strip()
    if not text:
        return None
    if text.startswith("//"):
        # One line: a slash in front of a slash. Several lines: more likely a pasted comment, which stays whole.
        return Question(text if "\n" in text else text[1:])
    name, _, argument = text.partition(" ")
    if not text.startswith("/") or "\n" in name:
        return Question(text)
    spec, argument = BY_NAME.get(name), argument.strip()
    if spec is None:
        if "\n" in text:
            return Question(text)
        return Mistake(f"there is no command {name}; {_nearest(name)}")
    if spec.argument == "none" and argument:
        return Mistake(f"{name} takes no argument")
    if spec.argument in ("required", "file") and not argument:
        return Mistake(f"{name} needs an argument: {name} {spec.shown}")
    if argument and spec.choices and argument not in spec.choices:
        return Mistake(f"{name} takes {' or '.join(spec.choices)}, not {argument!r}")
    return Command(spec.name, argument)


def _nearest(name: str) -> str:
    if "/" in name[1:]:
        return f"a question that begins with a slash is written with two: /{name}"
    near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "/help shows those there are"


def help_lines() -> list[tuple[str, str]]:
    """What to type, and what it does."""
    commands = [(f"{spec.name} {spec.shown}".strip(), spec.help) for spec in COMMANDS]
    return [*commands, *KEYS]


def candidates(line: str) -> list[str]:
    """Every whole line that the beginning `line` may become."""
    if not line.startswith("/"):
        return []
    name, blank, argument = line.partition(" ")
    if not blank:
        matches = [known for known in BY_NAME if known.startswith(name)]
        return [known + (" " if BY_NAME[known].argument != "none" else "") for known in matches]
    spec = BY_NAME.get(name)
    if spec is None:
        return []
    argument = argument.lstrip()
    if spec.argument == "file":
        return [f"{name} {path}" for path in _files(argument)]
    return [f"{name} {choice}" for choice in spec.choices if choice.startswith(argument)]


def _files(beginning: str) -> list[str]:
    folder, _, start = beginning.rpartition("/")
    shown = f"{folder}/" if "/" in beginning else ""
    try:
        entries = sorted(os.scandir(Path(shown or ".").expanduser()), key=lambda entry: entry.name)
    except (OSError, RuntimeError):  # no such folder, or no home
        return []
    return [
        shown + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith("."))
    ]
