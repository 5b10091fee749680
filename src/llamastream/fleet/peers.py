"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
import sys

_LOCAL_PEERCRED = 1  # <sys/un.h> of macOS and the BSDs; its level is 0
_XUCRED_SIZE = 76


def peer_uid(connection: socket.socket) -> int | None:
    """The user of the process at the other end, as the system knows it; None if it does not say."""
    try:
        if sys.platform == "darwin":
            raw = connection.getsockopt(0, _LOCAL_PEERCRED, _XUCRED_SIZE)
            _version, uid = struct.unpack_from("II", raw)
        else:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _pid, uid, _gid = struct.unpack("3i", raw)
    except OSError:
        return None
    return int(uid)


def may_control(uid: int | None) -> bool:
    """Whether a user may tell a process of ours what to do, or be believed by it: the same user, and root."""
    return uid in (os.geteuid(), 0)
