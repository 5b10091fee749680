"""Prompt caches that outlive a planned restart: each slot's state is saved to a file, and read back by the new process.

`POST /slots/ID?action=save|restore` with `{"filename": ...}`, for servers that were started with a directory for that.
What does not work costs the cache, and nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.engine import Engine

TIMEOUT = 60.0
"""Seconds for one slot: a long context is a file of gigabytes."""


class SavedSlot(Struct, frozen=True):
    """The state of one slot in a file: how many tokens it holds, and how many bytes it has."""

    slot: int
    file: str
    tokens: int
    size: int


def save(engine: Engine, directory: Path, space: int) -> list[SavedSlot]:
    """Save the slots of a server on which nothing runs.

    Args:
        directory: the server's own for slots. space: bytes that all files together may take.

    Returns:
        What was saved; a slot that is empty, too large for what is left, or refused by the server is not among it.
    """
    saved: list[SavedSlot] = []
    for slot in range(engine.capabilities.slots):
        name = f"slot-{slot}.bin"
        answer = _act(engine, slot, "save", name)
        size = _size(directory / name)
        tokens = int(answer.get("n_saved") or 0) if answer is not None else 0
        left = space - sum(each.size for each in saved)
        if tokens > 0 and 0 < size <= left:
            saved.append(SavedSlot(slot, name, tokens, size))
        else:
            _remove(directory / name)
            if answer is None:
                break  # the server cannot, or the disk is full: the next would not fare better
    return saved


def restore(engine: Engine, directory: Path, saved: list[SavedSlot]) -> int:
    """Give a fresh server what was saved, and remove the files; the tokens that came back."""
    tokens = 0
    for each in saved:
        if each.slot < engine.capabilities.slots:
            answer = _act(engine, each.slot, "restore", each.file)
            tokens += int(answer.get("n_restored") or 0) if answer is not None else 0
        _remove(directory / each.file)
    return tokens


def _act(engine: Engine, slot: int, action: str, name: str) -> dict[str, Any] | None:
    path = f"/slots/{slot}?action={action}"
    try:
        status, body = engine.address.request("POST", path, {"filename": name}, api_key=engine.api_key, timeout=TIMEOUT)
        answer = msgspec.json.decode(body) if status == 200 else None
    except (OSError, msgspec.DecodeError):
        return None
    return answer if isinstance(answer, dict) else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
