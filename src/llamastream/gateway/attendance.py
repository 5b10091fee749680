"""Work for a client that is there, and may leave at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llamastream.gateway.asgi import Receive


async def attended(work: Coroutine[Any, Any, object], receive: Receive) -> None:
    """Do it for as long as the client is there; its body must have been read. Raises what the work raises.

    The work is done in the task that is there: another one would begin a turn of the event loop later.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not left or task.uncancel():  # somebody else wants an end, too
            raise
    else:
        if left:
            task.uncancel()
    finally:
        watcher.cancel()
