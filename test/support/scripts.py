"""What a server double answers, good and bad."""

from __future__ import annotations

import pytest

from drivers import DRIVERS
from llamastream.testing import Script, http_answer, sse_answer
from llamastream.types import RetryPolicy

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]
GOOD = Script(sse_answer(TEXTS))
QUICK = RetryPolicy(base_delay=0.01, loading_interval=0.01)

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def failing(status: str, body: bytes = b"{}", *headers: str) -> Script:
    return Script(http_answer(status, body, "application/json", *headers))


UNAVAILABLE = failing("503 Service Unavailable")
LOADING = failing("503 Service Unavailable", b'{"error":{"message":"Loading model"}}')
