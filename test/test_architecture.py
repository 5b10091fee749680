"""The house keeps its order: imports point down, the import is quick, the tree is clean."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llamastream

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "llamastream"

# What each part may import of the package. Parts that are not named may import nothing of it.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "errors": {"types"},  # for annotations only
    "tools": set(),
    "types": {"tools"},
    "backends": {"types"},
    "address": {"errors"},
    "printable": set(),
    "heap": set(),
    "files": set(),
    "settings": {"errors", "types", "address"},
    "protocol": {"errors", "tools", "types", "address"},
    "policy": {"errors", "types", "backends"},
    "events": {"types", "backends"},
    "observe": {"_version", "errors", "types", "backends", "events"},
    "client": {"errors", "tools", "types", "address", "backends", "events", "settings", "protocol", "policy"},
    "engine": {"errors", "tools", "types", "settings", "protocol", "policy"},
    "alerts": {"_version", "errors", "backends", "events", "files", "settings"},
    "fleet": {"errors", "types", "backends", "events", "settings", "policy", "engine", "alerts"},
    "gateway": {
        "_version",
        "errors",
        "types",
        "backends",
        "address",
        "events",
        "settings",
        "protocol",
        "policy",
        "client",
        "observe",
        "heap",
    },
    "bench": {"_version", "errors", "types", "files", "settings", "client", "engine"},
    "testing": {"errors", "types"},
    "compose": {"errors", "types", "settings", "client", "engine"},
    "integrations": {"errors", "tools", "types", "events", "printable", *llamastream.__all__},  # public names only
    "cli": {
        "_version",
        "errors",
        "tools",
        "types",
        "backends",
        "address",
        "printable",
        "heap",
        "events",
        "settings",
        "protocol",
        "client",
        "engine",
        "fleet",
        "gateway",
        "observe",
        "bench",
        "alerts",
        "compose",
    },
    "__main__": {"cli"},
    "__init__": {"_version", "client", "engine", "errors", "fleet", "observe", "settings", "tools", "types"},
}

MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a module imports, anywhere in it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "llamastream" and rest:
                parts.add(rest.split(".")[0])
    return parts


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT what it may import"
    assert imported_parts(path) - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("part", ["protocol", "policy"])
def test_pure_parts_touch_no_socket_clock_process_or_log(part: str) -> None:
    impure = {"socket", "ssl", "asyncio", "threading", "time", "subprocess", "logging", "os", "random", "psutil"}
    for path in sorted((SOURCE / part).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not impure & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in impure, path


def test_the_package_imports_nothing_heavy_by_itself() -> None:
    heavy = "{'typer', 'rich', 'psutil', 'xllamacpp', 'huggingface_hub', 'uvloop', 'asyncio', 'ssl', 'msgspec'}"
    code = f"import sys, llamastream; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_clients_need_neither_the_engine_nor_the_command_line() -> None:
    heavy = "{'typer', 'rich', 'psutil', 'xllamacpp', 'huggingface_hub', 'uvloop'}"
    code = f"import sys, llamastream; llamastream.StreamingClient; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    assert sorted(dir(llamastream)) == sorted(llamastream.__all__)
    for name in llamastream.__all__:
        assert getattr(llamastream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llamastream.nonsense


def test_most_modules_are_small() -> None:
    lines = {path.relative_to(SOURCE): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    large = {str(path): count for path, count in lines.items() if count > 300}
    assert len(large) * 10 <= len(lines), large
    assert max(lines.values()) < 450, large


def test_the_old_import_path_stays_out_of_the_wheel() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/llamastream"]


@pytest.mark.parametrize("lock", ["requirements/dev.txt", "requirements/langchain.txt", "requirements/crewai.txt"])
def test_the_lock_file_names_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--hash=sha256:" in text
