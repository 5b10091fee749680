"""What a missing extra looks like, and that nobody pays for integrations that he does not use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from llamastream.errors import MissingDependencyError
from llamastream.integrations.extras import need

LIBRARIES = {"langchain": "langchain_core", "fastapi": "starlette", "crewai": "crewai"}
"""Each integration, and the library that it needs first of all."""

OF_INTEGRATIONS = {*LIBRARIES.values(), "langchain", "fastapi", "uvicorn", "pydantic", "litellm"}
SOURCE = Path(__file__).parents[2] / "src" / "llamastream"
SHARED = {"__init__", "clients", "extras", "web"}


def test_every_integration_is_tried_without_its_library() -> None:
    names = {path.stem for path in (SOURCE / "integrations").iterdir() if not path.name.startswith("__pycache__")}
    assert names - SHARED == LIBRARIES.keys()


@pytest.mark.parametrize(("extra", "module"), LIBRARIES.items())
def test_a_missing_extra_says_how_to_install_it(extra: str, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; import llamastream.integrations.{extra}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingDependencyError: llamastream.integrations.{extra} needs the package" in done.stderr
    assert done.stderr.endswith(f"pip install 'llamastream[{extra}]'\n")


def test_a_directory_of_the_same_name_is_not_taken_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="needs the package some-library, which is not installed"):
        need("some_library", "crewai")


def test_the_package_itself_imports_none_of_the_libraries() -> None:
    names = sorted(OF_INTEGRATIONS)
    code = f"""
import sys, llamastream, llamastream.integrations
for name in llamastream.__all__:
    getattr(llamastream, name)
print(sorted(set({names}) & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_other_part_imports_them_anywhere() -> None:
    """Also where none of them is installed, and in functions that no test calls."""
    for path in SOURCE.rglob("*.py"):
        part = path.relative_to(SOURCE).parts[0]
        if part == "integrations":
            continue
        # what the gateway stands on: its own extra, `server`
        own = {"starlette", "uvicorn"} if part == "gateway" else set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & (OF_INTEGRATIONS - own), path
