"""Where a fleet and the commands that control it meet: a socket in a private directory that both can work out."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llamastream.engine.options import MAX_SOCKET_PATH
from llamastream.errors import SettingError
from llamastream.fleet.workplace import InUseError, Workplace, state_home

SOCKET = "control.sock"
LONGEST_SOCKET = "01234567-255.sock"
"""As long as the name of a server's socket beside it can be (see `fleet.behind`)."""
SHARED = Path("/tmp")  # noqa: S108  # a directory in it is used only if it is ours, and closed to others


def parents(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Directories in which the places of fleets may be, the preferred one first.

    The session's own directory, the user's directory for state, and one in `/tmp` for where the others have paths that
    are too long for a socket, cannot be written, or do not exist.
    """
    environ = os.environ if environ is None else environ
    found = []
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):  # the specification wants relative paths ignored
        found.append(Path(environ["XDG_RUNTIME_DIR"]) / "llamastream")
    with suppress(RuntimeError):  # no home
        found.append(state_home() / "llamastream" / "run")
    found.append(SHARED / f"llamastream-{os.geteuid()}")
    return found


def settle(name: str, environ: Mapping[str, str] | None = None) -> Workplace:
    """Take the place of a fleet: a directory that nobody else can enter. What killed fleets left there is removed.

    Raises:
        SettingError: a fleet with this name runs already, or there is no directory that would do.
    """
    reasons = []
    for parent in parents(environ):
        reason = _unfit(parent, name)
        if reason is None:
            try:
                return Workplace(parent, name)
            except InUseError:
                raise SettingError(
                    f"a fleet with the name {name!r} runs already (`llamastream status --name {name}` shows it): "
                    "choose another --port, or another --name"
                ) from None
            except SettingError as error:
                reason = error.message
        reasons.append(reason)
    raise SettingError(f"there is no directory for the control socket: {'; '.join(reasons)}")


def sockets(environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """The control sockets that are there by the names of their fleets; whether anybody listens, shows only when one
    connects."""
    found: dict[str, Path] = {}
    for parent in parents(environ):
        try:
            if not _may_look(parent):
                continue
            places = sorted(parent.iterdir())
        except OSError:
            continue
        for place in places:
            path = place / SOCKET
            if place.name not in found and path.is_socket():
                found[place.name] = path
    return found


def _unfit(parent: Path, name: str) -> str | None:
    """Why a directory cannot be used; None if it can."""
    path = parent / name / LONGEST_SOCKET
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        return f"{str(path)!r} is longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have"
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(parent):
            return f"{str(parent)!r} belongs to somebody else, or others may write to it"
        if not os.access(parent, os.W_OK | os.X_OK):
            return f"{str(parent)!r} cannot be written"
    except OSError as error:
        return f"{str(parent)!r}: {error.strerror}"
    return None


def _is_ours(parent: Path) -> bool:
    """Whether it belongs to us, and nobody else can put anything there."""
    status = parent.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _may_look(parent: Path) -> bool:
    """Whether to believe what is there. Root may look into the directories of services, which it names itself, but
    not into what somebody else made in a place that anybody may write to."""
    if os.geteuid() == 0 and parent.parent != SHARED:
        status = parent.lstat()
        return stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022
    return _is_ours(parent)
