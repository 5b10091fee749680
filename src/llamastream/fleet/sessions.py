"""Generations that a server holds under an id (`X-Conversation-Id`), so that their clients may come back for them.

They run on when their client leaves, and llama-server does not end before they have: a drain that is not waited for any
longer has to cancel them, by `DELETE /v1/stream`. That needs their ids, which only their clients know: no endpoint
lists them (`POST /v1/streams/lookup` wants them told). But a server that is to cancel one it does not have, warns in
its log, and that warning names all that it has. So it is asked for one that cannot exist. A server that does not say so
has its process ended as any other.
"""

from __future__ import annotations

import os
import re
import time
from urllib.parse import quote

from llamastream.engine import Engine
from llamastream.types import LogRecord

ROUNDS = 20
"""Lines of the log are bounded: one may not name all ids, so what it has named is cancelled, and it is asked again."""
ANSWER_SECONDS = 1.0
"""For one answer, and for the line in the log."""
_POLL = 0.01
_NOBODY = "llamastream-nobody-"

# stop on unknown stream session, conv_id=X matched nothing, 2 live: [a, b]
_LIVE = re.compile(r"conv_id=(\S+) matched nothing, \d+ live: \[(.*?)(?:\]|…)?$")


def cancel_all(engine: Engine, timeout: float) -> int:
    """Cancel every generation that is held under an id; how many there were, as far as that can be known.

    Args:
        timeout: seconds at most.
    """
    if not engine.capabilities.reattach:
        return 0
    deadline = time.monotonic() + timeout
    gone: set[str] = set()
    for _ in range(ROUNDS):
        found = [each for each in _held(engine, deadline) if each not in gone]
        if not found:
            break
        for each in found:
            if not _cancel(engine, each, deadline):
                return len(gone)
            gone.add(each)
    return len(gone)


def is_our_question(record: LogRecord) -> bool:
    """Whether a line of the log answers us: the ids in it are nobody else's business."""
    return _NOBODY in record.message


def parse_live(message: str) -> tuple[str, list[str]]:
    """Which id was asked for, and those that the server has, from its warning; two empty values if it is another."""
    match = _LIVE.search(message)
    if match is None:
        return "", []
    ids = match[2].split(", ")
    if message.endswith("…"):
        ids.pop()  # the line was cut in the middle of it
    return match[1], [each for each in ids if each]


def _held(engine: Engine, deadline: float) -> list[str]:
    nobody = f"{_NOBODY}{os.urandom(8).hex()}"
    if not _cancel(engine, nobody, deadline):
        return []
    end = min(deadline, time.monotonic() + ANSWER_SECONDS)
    while True:
        for record in reversed(engine.logs):
            asked, ids = parse_live(record.message)
            if asked == nobody:
                return ids
        if time.monotonic() >= end or not engine.alive:
            return []
        time.sleep(_POLL)  # the line comes by a pipe, through the thread that reads it


def _cancel(engine: Engine, conversation: str, deadline: float) -> bool:
    left = min(deadline - time.monotonic(), ANSWER_SECONDS)
    if left <= 0:
        return False
    path = f"/v1/stream?conv_id={quote(conversation, safe='')}"
    try:
        return engine.address.request("DELETE", path, api_key=engine.api_key, timeout=left)[0] < 300
    except OSError:
        return False
