"""Files that are written in one step: who reads one finds it as it was, or as it is to be, and nothing between."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Write a file that only its user can read, in a directory that is there.

    Args:
        overwrite: replace one of this name; else there must be none, also if somebody makes it at this moment.

    Raises:
        FileExistsError: there is one, and it may not be replaced. OSError: it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if overwrite:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)
            Path(temporary).unlink()
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
