"""What a missing extra looks like, and that nobody pays for integrations that he does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {"langchain": "langchain_core", "fastapi": "starlette"}


@pytest.mark.parametrize(("extra", "module"), LIBRARIES.items())
def test_a_missing_extra_says_how_to_install_it(extra: str, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; import llamastream.integrations.{extra}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"MissingDependencyError: llamastream.integrations.{extra} needs the package" in done.stderr
    assert done.stderr.endswith(f"pip install 'llamastream[{extra}]'\n")


def test_the_package_itself_imports_none_of_the_libraries() -> None:
    names = sorted({*LIBRARIES.values(), "fastapi", "uvicorn", "pydantic"})
    code = f"""
import sys, llamastream, llamastream.integrations
for name in llamastream.__all__:
    getattr(llamastream, name)
print(sorted(set({names}) & set(sys.modules)))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
