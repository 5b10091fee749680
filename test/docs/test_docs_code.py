"""What README, ARCHITECTURE, CONTRIBUTING and docs/ show works: Python runs, commands parse, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from athome import AT_HOME
from llamastream.cli.app import app
from llamastream.engine import Engine
from llamastream.engine.flags import MANAGED
from llamastream.engine.helptext import parse_help
from llamastream.engine.translations import TRANSLATIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tools/demo_model/README.md"])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
DOCUMENTED_URL = "http://localhost:8080"


class Block(NamedTuple):
    """A fenced block: its language, the number of its first line, and its text."""

    language: str
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    opened: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (line[3:].strip(), number + 1), []
        else:
            yield Block(*opened, "\n".join(lines) + "\n")
            opened = None
    assert opened is None, f"{page.name}: the block that begins at line {opened} has no end"


def blocks_of(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language]


# -- Python -------------------------------------------------------------------------------------------------


def installed(package: str) -> bool:
    """Whether a package, or a part of one such as `opentelemetry.sdk`, is there."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a part: not even the package is there
        return False


def program(page: Path) -> str:
    """All Python blocks of a page as one program, each on the lines where the page has it.

    A block that begins with ```` ```python NAME ```` needs the package NAME, and is left out where that is missing.
    """
    lines: list[str] = []
    for block in blocks(page):
        language, _, package = block.language.partition(" ")
        if language == "python" and (not package or installed(package)):
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n"


WARNINGS = ["-W", "error"]
if find_spec("crewai") is not None:  # which uses what it calls deprecated itself
    WARNINGS += ["-W", "ignore::DeprecationWarning", "-W", "ignore::ImportWarning"]

WITH_PYTHON = [page for page in PAGES if any(block.language.startswith("python") for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=[str(page.relative_to(ROOT)) for page in WITH_PYTHON])
def test_python_blocks_run_in_order_against_a_real_server(page: Path, engine: Engine, tmp_path: Path) -> None:
    script = tmp_path / f"{page.stem}.py"
    script.write_text(program(page).replace(DOCUMENTED_URL, engine.url), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
    environment |= {"LLAMASTREAM_BASE_URL": engine.url, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **AT_HOME}
    environment["CREWAI_STORAGE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, *WARNINGS, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, f"{page.name} (line numbers are the page's own):\n{done.stderr}"
    assert done.stderr == ""


def test_the_pages_that_must_show_python_do() -> None:
    assert len(blocks_of(ROOT / "README.md", "python")) >= 3
    assert len(blocks_of(ROOT / "docs/llama_streaming_implementation.md", "python")) >= 8


# -- commands -----------------------------------------------------------------------------------------------


def command_lines() -> list[Any]:
    """(page and line, words) of every command in the bash blocks; continued lines joined, comments removed."""
    found = []
    for page in PAGES:
        for block in blocks_of(page, "bash"):
            text = re.sub(r"\\\n\s*", " ", block.code)
            for number, line in enumerate(text.splitlines()):
                words = shlex.split(line, comments=True)
                if words:
                    found.append(pytest.param(words, id=f"{page.name}:{block.line + number}"))
    return found


def simple_commands(words: list[str]) -> Iterator[list[str]]:
    """The commands of a pipe or list, without variable assignments in front and redirections behind."""
    command: list[str] = []
    for word in [*words, ";"]:
        if word in ("|", "&&", ";", "||", "&"):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)


MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
OUTSIDE = {"pip", "curl", "git", "cd", "export", "echo", "uvicorn", "cat", "kill", "jq"}
"""Commands that are not ours; what they do is not checked."""


@pytest.mark.parametrize("words", command_lines())
def test_commands_exist_and_their_options_parse(words: list[str]) -> None:
    for command in simple_commands(words):
        name, *arguments = command
        name = name.removeprefix(".venv/bin/")
        if name == "llamastream":
            check_llamastream(arguments)
        elif name == "make":
            targets = {argument for argument in arguments if "=" not in argument}
            assert targets <= MAKE_TARGETS, f"no such target: {targets - MAKE_TARGETS}"
        elif name == "python":
            assert (ROOT / arguments[0]).is_file() or arguments[0] == "-m", f"{arguments[0]} does not exist"
        elif "/" in name:
            assert os.access(ROOT / name, os.X_OK), f"{name} is no executable file"
        else:
            assert name in OUTSIDE, f"unknown command {name}"


def check_llamastream(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    if arguments and arguments[0].startswith("-"):
        assert arguments in (["--version"], ["--help"])
        return
    assert arguments, "a bare llamastream only prints its help"
    command, name, arguments = group.get_command(None, arguments[0]), arguments[0], arguments[1:]
    assert command is not None, f"no such command: {name}"
    alone = getattr(command, "invoke_without_command", False) and not set(arguments) & set(command.commands)
    if hasattr(command, "commands") and not alone:  # of a group
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context(command.name, arguments)
    known = parse_help((ROOT / "test/engine/help/2026.txt").read_text(encoding="utf-8"))
    for flag in (word for word in context.args if word.startswith("-")):
        assert flag not in MANAGED, f"{flag} is an option of serve"
        assert known.has(flag) or flag in TRANSLATIONS, f"llama-server has no {flag}"


# -- links --------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Heading anchors, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which is no heading there"


SOURCE = re.compile(r"`((?:src|core|docs|examples|scripts|test|tools|requirements|\.ci)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_pages_name_exist(page: Path) -> None:
    missing = [path for path in SOURCE.findall(prose(page)) if not (ROOT / path).exists()]
    assert missing == []


PLACE = re.compile(
    r"`((?:protocol|policy|client|engine|fleet|gateway|observe|backends|events|integrations|cli|settings|compose|types|errors)(?:\.\w+)+)(?:\(\))?`"
)


def test_names_of_the_architecture_page_exist() -> None:
    """`client.stream.Stream.result` must be importable as llamastream.client.stream, then found by attribute."""
    names = PLACE.findall(prose(ROOT / "ARCHITECTURE.md"))
    assert len(names) > 20
    missing = [name for name in names if not resolves(name)]
    assert missing == []


def resolves(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT / "src/llamastream" / "/".join(parts[:count])
        if place.is_dir() and count == len(parts):
            return True
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file() and parts[0] == "integrations":  # whose libraries may be missing
            source = file.read_text(encoding="utf-8")
            defined = set(re.findall(r"^\s*(?:class|(?:async )?def) (\w+)", source, re.MULTILINE))
            return set(parts[count:]) <= defined
        if file.is_file():
            module = __import__("llamastream." + ".".join(parts[:count]), fromlist=["*"])
            return has(module, parts[count:])
    return False


def has(value: Any, attributes: list[str]) -> bool:
    for attribute in attributes:
        if not hasattr(value, attribute):
            return False
        value = getattr(value, attribute)
    return True
