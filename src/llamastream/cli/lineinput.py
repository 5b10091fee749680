"""Reading what the user types: line editing, history and completion by readline where Python has it, and questions of
several lines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from llamastream.settings.file import user_directory

readline: ModuleType | None
try:
    import readline
except ImportError:  # a Python built without it: lines can be read all the same
    readline = None

PROMPT = "> "
CONTINUED = ". "
HISTORY_LENGTH = 1000
_MARK = '"""'
_BLOCK = re.compile(r'\s*(/\w+!?\s+)?"""')
_MAX_ENTRY = 64 * 1024


def read_entry(read: Callable[[str], str]) -> str:
    """One question or command, which may take several lines; `read` takes a prompt and gives a line.

    Raises:
        EOFError: the input ended before anything was typed. An unfinished block that ends so is taken as it is.
    """
    line = read(PROMPT)
    if _BLOCK.match(line):
        head, _, line = line.partition(_MARK)
        lines = [line]
        while _MARK not in lines[-1]:
            try:
                lines.append(read(CONTINUED))
            except EOFError:
                break
        last, _, after = lines[-1].partition(_MARK)
        lines[-1] = last + after
        block = "\n".join(lines).strip("\n")
        # In marks everything is a question, unless a command stands in front of them.
        return head + block if head.strip() or not block.startswith("/") else f"/{block}"
    lines = [line]
    while _continues(lines[-1]):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read(CONTINUED))
        except EOFError:
            break
    return "\n".join(lines)


def _continues(line: str) -> bool:
    """An odd number of backslashes at the end: two are a backslash of the text itself."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def history_path(environ: Mapping[str, str]) -> Path:
    """Where the history is kept, by the XDG base directories."""
    return user_directory("XDG_STATE_HOME", ".local/state", environ) / "history"


class History:
    """What was typed, over all conversations: a line of JSON for each entry, since an entry may have several lines.

    Conversations at the same time add to one file. Where it cannot be written, nothing is kept, and nobody is bothered.
    """

    def __init__(self, path: Path | None, length: int = HISTORY_LENGTH) -> None:
        self._path = path
        self._length = length

    def load(self) -> list[str]:
        """The last entries, oldest first; shortens the file if it has got too long."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        entries = []
        for line in lines[-self._length :]:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, str):
                    entries.append(entry)
        if len(lines) > 2 * self._length:
            with contextlib.suppress(OSError):
                new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
                with self._private(new, os.O_TRUNC) as descriptor:
                    os.write(descriptor, "".join(map(_encode, entries)).encode())
                new.replace(self._path)
        return entries

    def add(self, entry: str) -> None:
        if self._path is None or len(entry) > _MAX_ENTRY:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._private(self._path, os.O_APPEND) as descriptor:
                os.write(descriptor, _encode(entry).encode())

    @contextlib.contextmanager
    def _private(self, path: Path, flags: int) -> Iterator[int]:
        """Conversations are nobody else's business: readable by their owner alone, also if the file is an old one."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            yield descriptor
        finally:
            os.close(descriptor)


def _encode(entry: str) -> str:
    return json.dumps(entry) + "\n"


class LineReader:
    """Reads entries from the terminal."""

    def __init__(self, history: History, complete: Callable[[str], list[str]], *, styled: bool) -> None:
        """`complete` gives the whole lines that a beginning may become; `styled`: the prompt may be bold."""
        self._history = history
        self._complete = complete
        self._matches: list[str] = []
        self._last = ""
        # readline must know which characters of a prompt take no room.
        self._styled = styled and readline is not None
        self._pasting = readline is not None and "libedit" not in (readline.__doc__ or "")
        if readline is not None:
            self._prepare(readline)

    def _prepare(self, line: ModuleType) -> None:
        line.set_auto_history(False)
        line.clear_history()
        for entry in self._history.load():
            line.add_history(entry)
            self._last = entry
        line.set_completer(self._completion)
        line.set_completer_delims(" \t\n")
        if self._pasting:
            line.parse_and_bind("tab: complete")
            line.parse_and_bind("set enable-bracketed-paste on")
            # It is for lines that are continued here, not for readline, to say whether a blank follows.
            line.parse_and_bind("set completion-query-items 200")
        else:
            line.parse_and_bind("bind ^I rl_complete")

    def read(self) -> str:
        """The next entry.

        Raises:
            EOFError: the user leaves. KeyboardInterrupt: Ctrl-C.
        """
        entry = read_entry(self._line)
        if readline is not None and entry.strip() and entry != self._last:
            readline.add_history(entry)
            self._history.add(entry)
            self._last = entry
        return entry

    def _line(self, prompt: str) -> str:
        sys.stdout.flush()
        shown = f"\001\033[1m\002{prompt}\001\033[0m\002" if self._styled else prompt
        # What is no UTF-8 comes with surrogates, which no JSON can carry.
        return input(shown).encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _completion(self, text: str, state: int) -> str | None:
        """readline completes the last word, `complete` whole lines: cut off what stands in front of the word."""
        assert readline is not None
        if state == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            try:
                found = self._complete(before + text)
            except Exception:  # noqa: BLE001  # readline would swallow it, and leave the terminal as it is
                found = []
            self._matches = [match[len(before) :] for match in found if match.startswith(before)]
        return self._matches[state] if state < len(self._matches) else None
