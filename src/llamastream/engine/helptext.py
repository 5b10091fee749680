"""Reading `llama-server --help`, of any age: which flags exist, and what they take.

Three generations: 2023 (`  -t N, --threads N     text`), 2024 (`-t,    --threads N      text` in sections),
and since 2025 the same with negations on the line (`--mmap, --no-mmap`) and removed flags that only say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

_FLAG = r"--?[A-Za-z][A-Za-z0-9_.-]*"
# one name, and what stands between it and the next name or the description (two spaces): its value's hint
_NAME = re.compile(rf"(?P<flag>{_FLAG})(?P<hint>(?: (?! |-{{1,2}}[A-Za-z])(?:[^ ,]|,(?! +-)|(?<=[^ ]) (?! |-))+)?)")
_START = re.compile(rf"^ {{0,4}}(?={_FLAG}(?:[ ,=]|$))")
_ENV = re.compile(r"\(env: (\w+)\)")
# values that the builds of 2023 take without saying so on the line
_UNHINTED = {"--host": "HOST", "--log-format": "FORMAT", "--n-predict": "N"}


class HelpFlag(Struct, frozen=True):
    """One option: all its names, the hint of its value ("" if it takes none), and its text.

    `removed`: the build knows the flag only in order to refuse it.
    """

    names: tuple[str, ...]
    hint: str
    text: str
    removed: bool = False

    @property
    def arity(self) -> int:
        """How many values follow the flag."""
        bare = re.sub(r"<[^>]*>|\([^)]*\)", "X", self.hint)
        return len(bare.split())

    @property
    def env(self) -> str:
        """The environment variable that sets the same, or ""."""
        match = _ENV.search(self.text)
        return match[1] if match else ""


class Help(Struct, frozen=True):
    """All flags of a build, by name."""

    flags: Mapping[str, HelpFlag]

    def has(self, flag: str) -> bool:
        """Whether the build takes the flag."""
        found = self.flags.get(flag)
        return found is not None and not found.removed

    def first(self, *flags: str) -> str | None:
        """The first of these that the build takes."""
        return next((flag for flag in flags if self.has(flag)), None)

    def mentions(self, flag: str, word: str) -> bool:
        """Whether the flag's hint or text has a word, such as one of the values that it allows."""
        found = self.flags.get(flag)
        return (
            found is not None
            and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", found.hint + " " + found.text) is not None
        )

    @property
    def names(self) -> list[str]:
        """All names that the build takes, sorted."""
        return sorted(name for name, flag in self.flags.items() if not flag.removed)


def parse_help(text: str) -> Help:
    """Read a help text; lines that define no flag and continue none are passed over."""
    flags: dict[str, HelpFlag] = {}
    names: list[str] = []
    hint = ""
    lines: list[str] = []

    def close() -> None:
        if names:
            body = " ".join(" ".join(lines).split())
            # the builds that know removed flags say so in these words
            removed = body.startswith("the argument has been removed")
            flag = HelpFlag(names=tuple(names), hint=hint, text=body, removed=removed)
            for name in names:
                # `--mlock` and the like stand twice when a build keeps an old name: the living one counts
                if name not in flags or flags[name].removed:
                    flags[name] = flag

    for line in text.splitlines():
        if _START.match(line):
            close()
            names, hint, rest = _definition(line.strip())
            lines = [rest]
        elif line.startswith("-----") or (line and not line[0].isspace()):
            close()
            names, lines = [], []
        elif names:
            lines.append(line)
    close()
    return Help(flags=flags)


def _definition(line: str) -> tuple[list[str], str, str]:
    """Names, hint and the beginning of the description of a line that defines a flag."""
    names: list[str] = []
    hint = ""
    position = 0
    while match := _NAME.match(line, position):
        names.append(match["flag"])
        if match["hint"].strip():
            # `--pooling {none,mean,cls} pooling type ...`: one space only, but the braces end the hint
            hint = re.sub(r"^(\{[^}]*\}).*$", r"\1", match["hint"].strip())
        position = match.end()
        follows = re.match(r",\s*(?=-)| (?=--[a-z])", line[position:])
        if follows is None:
            break
        position += follows.end()
    if not hint:
        hint = next((_UNHINTED[name] for name in names if name in _UNHINTED), "")
    return names, hint, line[position:].strip()
