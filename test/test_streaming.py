"""Streaming, end to end: checks against a live llama-server and a small performance baseline.

Part of the test suite, and alone:

    python test/test_streaming.py [--url URL]

Alone it prints a table of checks and the baseline. Without --url it takes the server at the default address if one
listens there, else it starts the demo engine. It exits with 1 if a check fails, with 2 if something is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `core`, when run alone

try:
    from core.llm_streaming_client import AsyncLlamaStreamingClient, LlamaStreamingClient
    from llamastream.client import AsyncStreamingClient, StreamingClient
    from llamastream.engine import Engine, EngineOptions, launch
    from llamastream.errors import ContextSizeError, InvalidRequestError, LlamaStreamError
    from llamastream.types import Stats, StreamEnd, TextDelta
except ImportError as missing:
    print(
        f"test_streaming: {missing.name or missing} is not installed for {sys.executable}\n"
        "Set the project up and run it from its environment:\n"
        "    make setup && .venv/bin/python test/test_streaming.py",
        file=sys.stderr,
    )
    sys.exit(2)

QUESTION = [{"role": "user", "content": "Tell me a long story."}]
SHORT = [{"role": "user", "content": "Who are you?"}]
MAX_TOKENS = 64


# -- checks: each takes the server's URL, returns one line on what it saw, and raises if something is wrong --------


def check_health(url: str) -> str:
    client = StreamingClient(url)
    health = client.health()
    assert health.ok, health.detail or health.status
    assert LlamaStreamingClient(url).check_server_health()
    props = client.props()
    return f"{props.get('total_slots')} slots, build {props.get('build_info', 'unknown')}"


def check_chat_streams_in_pieces(url: str) -> str:
    pieces = list(StreamingClient(url).stream_chat(QUESTION, max_tokens=MAX_TOKENS))
    assert len(pieces) > 5, f"only {len(pieces)} pieces: is something buffering?"
    return f"{len(pieces)} pieces"


def check_completion_streams(url: str) -> str:
    stream = StreamingClient(url).stream_completion("Once upon a time", max_tokens=MAX_TOKENS)
    pieces = list(stream)
    assert pieces, "no text"
    assert stream.finish_reason in ("stop", "length")
    return f"{len(pieces)} pieces, {stream.finish_reason}"


def check_async_equals_sync(url: str) -> str:
    async def ask() -> str:
        stream = AsyncStreamingClient(url).stream_chat(SHORT, temperature=0, max_tokens=MAX_TOKENS, seed=1)
        return "".join([text async for text in stream])

    sync = "".join(StreamingClient(url).stream_chat(SHORT, temperature=0, max_tokens=MAX_TOKENS, seed=1))
    assert sync == asyncio.run(ask()), "the two clients got different greedy answers"
    return f"{len(sync)} characters, identical"


def check_old_names(url: str) -> str:
    client = LlamaStreamingClient(url)
    text = "".join(client.stream_with_retry(client.stream_chat, SHORT, max_tokens=8, max_retries=1, base_delay=0.1))

    async def ask() -> str:
        async_client = AsyncLlamaStreamingClient(url)
        return "".join([piece async for piece in async_client.stream_chat(SHORT, max_tokens=8)])

    assert text, "no text"
    assert asyncio.run(ask()), "no text from the async client"
    return "LlamaStreamingClient, AsyncLlamaStreamingClient"


def check_events_and_figures(url: str) -> str:
    events = list(StreamingClient(url).stream_chat(SHORT, max_tokens=MAX_TOKENS).events())
    end = events[-1]
    assert isinstance(end, StreamEnd), f"the last event is {type(end).__name__}"
    assert end.stats.time_to_first_token is not None
    assert any(isinstance(event, TextDelta) for event in events)
    return f"{len(events)} events, {end.stats.completion_tokens} tokens, {end.finish_reason}"


def check_a_left_stream_frees_its_slot(url: str) -> str:
    client = StreamingClient(url)
    slowest = 0.0
    for _ in range(5):
        for _ in client.stream_chat(QUESTION, ignore_eos=True):
            break
        slowest = max(slowest, _until_free(client))
    assert slowest < 1.0, f"it took {slowest:.2f} s"
    return f"after {slowest * 1000:.0f} ms at most"


def check_cancel_from_another_thread(url: str) -> str:
    client = StreamingClient(url)
    stream = client.stream_chat(QUESTION, ignore_eos=True)
    thread = threading.Thread(target=stream.cancel)
    count = 0
    for count, _ in enumerate(stream, 1):
        if count == 3:
            thread.start()
    thread.join()
    assert stream.finish_reason == "cancelled"
    return f"{count} pieces read, slot free after {_until_free(client) * 1000:.0f} ms"


def check_concurrent_streams(url: str) -> str:
    client = StreamingClient(url)
    alone = client.chat(SHORT, temperature=0, max_tokens=MAX_TOKENS).text
    slots = len(client.slots())

    async def ask() -> list[str]:
        shared = AsyncStreamingClient(url)
        results = await asyncio.gather(
            *(shared.chat(SHORT, temperature=0, max_tokens=MAX_TOKENS) for _ in range(2 * slots))
        )
        return [result.text for result in results]

    texts = asyncio.run(ask())
    assert all(texts), "an empty answer"
    same = sum(text == alone for text in texts)
    return f"{len(texts)} streams on {slots} slots, {same} identical to the one alone"


def check_wrong_requests_are_refused(url: str) -> str:
    client = StreamingClient(url)
    try:
        client.stream_chat("not a list")  # type: ignore[arg-type]  # the point of the check
    except InvalidRequestError:
        pass
    else:
        raise AssertionError("messages that are no list were accepted")
    context = int(client.slots()[0]["n_ctx"])
    try:
        client.chat([{"role": "user", "content": "word " * (context + 1000)}])
    except ContextSizeError as error:
        return f"prompt of {error.n_prompt_tokens} tokens for a context of {error.n_ctx}"
    raise AssertionError("a prompt longer than the context was accepted")


def _until_free(client: StreamingClient) -> float:
    started = time.monotonic()
    while any(slot["is_processing"] for slot in client.slots()):
        assert time.monotonic() - started < 10, "a slot is still busy after 10 s"
        threading.Event().wait(0.005)  # a poll: the server has no event for this
    return time.monotonic() - started


CHECKS: list[Callable[[str], str]] = [
    check_health,
    check_chat_streams_in_pieces,
    check_completion_streams,
    check_async_equals_sync,
    check_old_names,
    check_events_and_figures,
    check_a_left_stream_frees_its_slot,
    check_cancel_from_another_thread,
    check_concurrent_streams,
    check_wrong_requests_are_refused,
]


# -- a small performance baseline -----------------------------------------------------------------------------


class Baseline(NamedTuple):
    """Times in seconds, speeds in tokens per second; `aggregate` is the sum over concurrent streams."""

    streams: int
    time_to_first_token: float
    inter_token_latency: float
    inter_token_latency_p95: float
    tokens_per_second: float
    aggregate: float


def measure(url: str, streams: int, rounds: int = 5) -> Baseline:
    """Medians over `rounds` rounds of `streams` concurrent streams."""

    async def one_round() -> tuple[list[Stats], float]:
        client = AsyncStreamingClient(url)
        started = time.monotonic()
        results = await asyncio.gather(
            *(client.chat(QUESTION, max_tokens=MAX_TOKENS, ignore_eos=True) for _ in range(streams))
        )
        return [result.stats for result in results], time.monotonic() - started

    stats: list[Stats] = []
    aggregates = []
    for _ in range(rounds):
        batch, seconds = asyncio.run(one_round())
        stats += batch
        aggregates.append(sum(s.completion_tokens or s.chunks for s in batch) / seconds)
    return Baseline(
        streams,
        statistics.median(s.time_to_first_token or 0.0 for s in stats),
        statistics.median(s.inter_token_latency_p50 or 0.0 for s in stats),
        statistics.median(s.inter_token_latency_p95 or 0.0 for s in stats),
        statistics.median(s.tokens_per_second or 0.0 for s in stats),
        statistics.median(aggregates),
    )


# -- as part of the suite ---------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc) -> None:  # type: ignore[no-untyped-def]  # pytest is not there when run alone
    if "check" in metafunc.fixturenames:
        metafunc.parametrize("check", CHECKS, ids=[check.__name__.removeprefix("check_") for check in CHECKS])


def test_check(check: Callable[[str], str], engine: Engine) -> None:
    assert check(engine.url)


def test_baseline_has_figures(engine: Engine) -> None:
    baseline = measure(engine.url, streams=2, rounds=1)
    assert min(baseline) >= 0
    assert baseline.tokens_per_second > 0


# -- alone --------------------------------------------------------------------------------------------------------


@contextmanager
def live_server(url: str | None) -> Iterator[str]:
    """The server that was asked for, the one at the default address, or the demo engine."""
    if url is not None:
        yield url
        return
    default = StreamingClient()
    if "LLAMASTREAM_BASE_URL" in os.environ or default.check_server_health():
        print(f"server: {default.base_url}", file=sys.stderr)
        yield default.base_url
        return
    print(f"no server at {default.base_url}: starting the demo engine", file=sys.stderr)
    with launch(EngineOptions()) as engine:
        yield engine.url


def main() -> int:
    parser = argparse.ArgumentParser(description="Check streaming from a live llama-server and measure a baseline.")
    parser.add_argument("--url", help="the server; default: the one at LLAMASTREAM_BASE_URL or localhost:8080, or demo")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    rows: list[tuple[str, bool, str]] = []
    baselines: list[Baseline] = []
    try:
        with live_server(arguments.url) as url:
            for check in CHECKS:
                name = check.__name__.removeprefix("check_").replace("_", " ")
                try:
                    rows.append((name, True, check(url)))
                except (AssertionError, LlamaStreamError, KeyError) as error:
                    rows.append((name, False, str(error) or type(error).__name__))
                if not arguments.json:
                    print(f"{'ok  ' if rows[-1][1] else 'FAIL'}  {name:38}  {rows[-1][2]}", flush=True)
                if check is check_health and not rows[0][1]:
                    break  # without a server the others would only repeat it
            if all(ok for _, ok, _ in rows):
                baselines = [measure(url, streams) for streams in (1, 4)]
    except LlamaStreamError as error:
        print(f"test_streaming: {error}", file=sys.stderr)
        return 2
    failed = sum(not ok for _, ok, _ in rows)
    if arguments.json:
        checks = [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in rows]
        print(json.dumps({"checks": checks, "baseline": [baseline._asdict() for baseline in baselines]}))
    else:
        if baselines:
            print("\nstreams  first token  between tokens  (p95)     tokens/s each  tokens/s all")
        for b in baselines:
            print(
                f"{b.streams:7}  {b.time_to_first_token * 1000:8.1f} ms  {b.inter_token_latency * 1000:11.2f} ms"
                f"  {b.inter_token_latency_p95 * 1000:6.2f} ms  {b.tokens_per_second:13,.0f}  {b.aggregate:12,.0f}"
            )
        print(f"\n{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
