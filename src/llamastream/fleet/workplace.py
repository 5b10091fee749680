"""A private directory for as long as this process lives, and the removal of those that killed processes left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from llamastream.errors import SettingError
from llamastream.settings.file import base_directory

LOCK = "lock"


def cache_home() -> Path:
    """Where large files that can be made again belong (XDG Base Directory Specification)."""
    return base_directory("XDG_CACHE_HOME", ".cache")


def state_home() -> Path:
    """Where what should outlive a restart belongs (XDG Base Directory Specification)."""
    return base_directory("XDG_STATE_HOME", ".local/state")


class InUseError(SettingError):
    """A living process has the directory."""


class Workplace:
    """A directory of mode 0700 that is removed on `close`, and by the next process that makes one, if we are killed.

    A lock on a file in it shows that its process lives: the system drops the lock with the process.
    """

    def __init__(self, parent: Path, name: str) -> None:
        """Make `parent/name`; directories beside it whose process is gone are removed.

        Raises:
            InUseError: another process uses it.
            SettingError: it cannot be made.
        """
        self.path = parent / name
        self._owner = os.getpid()
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(parent)
            self._lock = self._settle()
        except OSError as error:
            raise SettingError(f"the directory {str(self.path)!r} cannot be made: {error.strerror}") from None
        if self._lock is None:
            raise InUseError(f"the directory {str(self.path)!r} is used by another process: choose another name")

    def _settle(self) -> int | None:
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            try:
                lock = _take_lock(self.path)
            except FileNotFoundError:
                continue  # it was swept
            if lock is None or _is_file_of(lock, self.path / LOCK):
                return lock
            os.close(lock)  # of a directory that another process swept just before we had its lock

    def close(self) -> None:
        """Remove the directory with all that is in it. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None and os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(lock)


def _take_lock(directory: Path) -> int | None:
    """The lock's descriptor, None if a living process has it."""
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sweep(parent: Path) -> None:
    """Remove the workplaces in `parent` that no living process uses; whatever else is there stays."""
    with suppress(OSError):
        for directory in parent.iterdir():
            if directory.is_symlink() or not (directory / LOCK).is_file():
                continue
            with suppress(OSError):
                lock = _take_lock(directory)
                if lock is not None:
                    shutil.rmtree(directory, ignore_errors=True)
                    os.close(lock)
