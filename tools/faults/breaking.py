"""Faults in the way of a whole recovery, and the judgement on what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from llamastream.errors import LlamaStreamError
from llamastream.testing import ChaosProxy, Fault, HtmlError, Reset
from llamastream.testing.chaos import GENERATION_PATHS
from tools.faults.asking import Answer, Ask, How, answer, losses

NO_SUCH_PATH = HtmlError(status="404 Not Found", page='{"error":{"message":"File Not Found","code":404}}')


def _path(request_line: str) -> tuple[str, str]:
    method, _, target = request_line.partition(" ")
    return method, target.partition(" ")[0].partition("?")[0]


def in_order(*faults: Fault | None) -> Callable[[int, str], Fault | None]:
    """The faults for the first, second, … request for an answer: a generation, or one that takes it up again."""
    rest = iter(faults)

    def choose(_: int, request_line: str) -> Fault | None:
        method, path = _path(request_line)
        asks = (method, path) == ("GET", "/v1/stream") or (method == "POST" and path in GENERATION_PATHS)
        return next(rest, None) if asks else None

    return choose


def without_reattach(*faults: Fault | None) -> Callable[[int, str], Fault | None]:
    """The faults for the first, second, … generation, from a server that knows no way to take one up again."""
    rest = iter(faults)

    def choose(_: int, request_line: str) -> Fault | None:
        method, path = _path(request_line)
        if path == "/v1/stream":
            return NO_SUCH_PATH
        return next(rest, None) if method == "POST" and path in GENERATION_PATHS else None

    return choose


class WrongAnswerError(AssertionError):
    """A stream that broke gave something else than the undisturbed one.

    Attributes:
        owned: it went on by a continuation, and so does not claim to be the same.
    """

    def __init__(self, message: str, *, owned: bool = False) -> None:
        super().__init__(message)
        self.owned = owned


def survive(
    url: str | list[str], ask: Ask, whole: Answer, how: How = "sync", *, counted: bool = True, **options: Any
) -> Answer | LlamaStreamError:
    """The answer, which is whole, or the error that says that it is not; with it comes a beginning of the answer.

    Raises:
        WrongAnswerError: neither.
    """
    try:
        got = answer(url, ask, how, **options)
    except LlamaStreamError as error:
        partial = error.partial
        if partial is not None:
            calls = partial.tool_calls[0].arguments if partial.tool_calls else ""
            expected = whole.result.tool_calls[0].arguments if whole.result.tool_calls else ""
            if not (
                whole.result.text.startswith(partial.text)
                and whole.result.reasoning.startswith(partial.reasoning)
                and expected.startswith(calls)
            ):
                raise WrongAnswerError(f"{error!r} with a partial answer that is no beginning: {partial!r}") from error
        return error
    lost = losses(got, whole, counted=counted)
    if lost:
        owned = any(not recovery.verified for recovery in got.recoveries)
        raise WrongAnswerError(f"after {got.kinds or 'no recovery'}: {'; '.join(lost)}", owned=owned)
    return got


def cut(
    url: str, ask: Ask, whole: Answer, *faults: Fault | None, how: How = "sync", reattach: bool = True, **options: Any
) -> Answer | LlamaStreamError:
    """The same through a proxy with these faults, in order."""
    choose = in_order(*faults) if reattach else without_reattach(*faults)
    with ChaosProxy(url, choose, everything=True) as proxy:
        return survive(proxy.url, ask, whole, how, **options)


def divergence(url: str, ask: Ask, whole: Answer, events: int, how: How = "sync") -> tuple[Answer, int]:
    """The answer that was continued behind so many events, and how many characters of it are those of `whole`."""
    with ChaosProxy(url, without_reattach(Reset(after_events=events)), everything=True) as proxy:
        got = answer(proxy.url, ask, how)
    pairs = zip(got.result.text, whole.result.text, strict=False)
    return got, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
