"""What a missing extra looks like."""

from __future__ import annotations

from importlib.util import find_spec

from llamastream.errors import MissingDependencyError


def need(module: str, extra: str) -> None:
    """Check that an integration's library is there.

    Args:
        module: the library's top module. extra: the extra that brings it, and the name of the integration.

    Raises:
        MissingDependencyError: it is not installed; the message has the command that installs it.
    """
    found = find_spec(module)
    if found is None or found.origin is None:  # a directory of that name, with no package in it, is found as well
        raise MissingDependencyError(
            f"llamastream.integrations.{extra} needs the package {module.replace('_', '-')}, which is not installed: "
            f"pip install 'llamastream[{extra}]'"
        )
