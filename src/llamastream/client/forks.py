"""What has a lock gets a new one in the child of a fork: a thread that does not exist there may hold the old one."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """Has something that must be made anew in the child of a fork."""

    def after_fork(self) -> None: ...


_known: weakref.WeakSet[Renewed] = weakref.WeakSet()


def renew_after_fork(thing: Renewed) -> None:
    """Call `after_fork` of `thing`, if it still exists, in each child of this process, before anything else happens."""
    _known.add(thing)


def _after_fork() -> None:
    for thing in list(_known):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
