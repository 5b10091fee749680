"""Everything that a stream tells, typed: not the text alone.

python examples/events.py [--url http://localhost:8080] ["Your question"]
"""

import argparse
from collections.abc import Iterator

from llamastream import StreamingClient, Usage, launch
from llamastream.types import (
    PromptProgress,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    Timings,
    ToolCallDelta,
)


def describe(events: Iterator[StreamEvent]) -> Iterator[str]:
    for event in events:
        match event:
            case StreamStart(status=status, server=server):
                yield f"start      {status} from {server or 'a server without a name'}"
            case PromptProgress(processed=processed, total=total):
                yield f"prefill    {processed} of {total} prompt tokens"
            case ReasoningDelta(text=text):
                yield f"reasoning  {text!r}"
            case TextDelta(text=text):
                yield f"text       {text!r}"
            case ToolCallDelta(name=name, arguments=arguments):
                yield f"tool call  {name or '(goes on)'} {arguments!r}"
            case Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached):
                yield f"usage      {prompt} prompt tokens ({cached} cached), {completion} generated"
            case Timings(prompt_ms=prompt_ms, predicted_ms=predicted_ms):
                yield f"timings    prefill {prompt_ms:.1f} ms, decode {predicted_ms:.1f} ms, by the server's clock"
            case StreamEnd(finish_reason=reason, stats=stats):
                yield f"end        {reason}, {stats.chunks} pieces in {stats.duration * 1000:.0f} ms"
                for name in ("time_to_first_token", "inter_token_latency_p50", "inter_token_latency_p95"):
                    seconds = getattr(stats, name)
                    yield f"           {name}: {'unknown' if seconds is None else f'{seconds * 1000:.2f} ms'}"


def show(url: str, question: str) -> None:
    with StreamingClient(url) as client:
        # `return_progress` is llama-server's own: keyword arguments that llamastream does not know go into the request
        messages = [{"role": "user", "content": question}]
        for line in describe(client.stream_chat(messages, temperature=0, return_progress=True).events()):
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print every event of a stream.")
    parser.add_argument("question", nargs="?", default="Count to ten.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    arguments = parser.parse_args()
    if arguments.url:
        show(arguments.url, arguments.question)
    else:
        with launch() as engine:
            show(engine.url, arguments.question)


if __name__ == "__main__":
    main()
