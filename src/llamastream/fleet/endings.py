"""Why a server ended, in words, and whether another start could end otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from llamastream.errors import EngineMissingError, LlamaStreamError, SettingError, UnsupportedFlagError
from llamastream.types import LogRecord

LOG_LINES = 3
"""So many of the server's last lines explain why it ended."""


def why_ended(exit_code: int | None, logs: Sequence[LogRecord]) -> str:
    """Why a process is gone that nobody told to go."""
    lines = [record.message for record in logs if record.level == "error"][-LOG_LINES:]
    return f"the process ended by itself ({_exit(exit_code)})" + (f": {' | '.join(lines)}" if lines else "")


def is_final(error: LlamaStreamError) -> bool:
    """Whether a start that failed with this cannot end otherwise: no engine, a setting that is refused."""
    return isinstance(error, EngineMissingError | UnsupportedFlagError | SettingError)


def _exit(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
