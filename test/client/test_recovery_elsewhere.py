"""A server that is no way back: the stream goes on where it broke, and a request goes to one that can take it."""

from __future__ import annotations

import pytest

from drivers import DRIVERS, Driver
from llamastream.errors import BadRequestError
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, http_answer
from llamastream.types import RetryPolicy

MESSAGES = [{"role": "user", "content": "Count."}]
WHOLE = "".join(f"{number} " for number in range(20))
QUICK = RetryPolicy(base_delay=0.001, max_delay=0.01)

JSON = b'{"error":{"code":%d,"message":"no","type":"x"}}'
UNFIT = {
    "401": http_answer("401 Unauthorized", JSON % 401),
    "403": http_answer("403 Forbidden", JSON % 403),
    "404": http_answer("404 Not Found", JSON % 404),
    "500": http_answer("500 Internal Server Error", JSON % 500),
    "501": http_answer("501 Not Implemented", JSON % 501),
    "a web page": http_answer("200 OK", b"<html>hello</html>", "text/html"),
    "elsewhere": http_answer("302 Found", b"", "text/html", "Location: http://127.0.0.1:1/"),
}

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


@each_driver
@pytest.mark.parametrize("answer", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("request_options", [{}, {"max_tokens": 50}], ids=["free", "held"])
def test_a_broken_stream_is_mended_by_the_server_that_can(
    driver: Driver, answer: bytes, request_options: dict[str, int]
) -> None:
    with (
        NumberedServer(tokens=20) as good,
        ChaosProxy(good.url, Reset(after_events=8)) as proxy,
        ServerDouble(Script(answer)) as bad,
    ):
        result = driver.result([proxy.url, bad.url], MESSAGES, {"retry": QUICK}, **request_options)  # type: ignore[arg-type]
        assert result.text == WHOLE
        assert len(result.stats.recoveries) == 1
        assert result.stats.recoveries[0].server == proxy.url


@each_driver
@pytest.mark.parametrize("answer", UNFIT.values(), ids=UNFIT)
def test_a_request_moves_on_from_a_server_that_cannot_take_it(driver: Driver, answer: bytes) -> None:
    with NumberedServer(tokens=20) as good, ServerDouble(Script(answer)) as bad:
        result = driver.result([bad.url, good.url], MESSAGES, {"retry": QUICK})  # type: ignore[arg-type]
        assert result.text == WHOLE
        assert [attempt.status for attempt in result.stats.failed_attempts][1:] == []


@each_driver
def test_a_bad_request_is_bad_everywhere(driver: Driver) -> None:
    with NumberedServer(tokens=20) as good, ServerDouble(Script(http_answer("400 Bad Request", JSON % 400))) as bad:
        with pytest.raises(BadRequestError):
            driver.result([bad.url, good.url], MESSAGES, {"retry": QUICK})  # type: ignore[arg-type]
        assert good.requests == []
