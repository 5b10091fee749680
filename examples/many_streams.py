"""Many answers at once from one event loop: with more streams than slots, the rest waits in the server's queue.

python examples/many_streams.py [--url http://localhost:8080] [-n 16]
"""

import argparse
import asyncio
import time

from llamastream import AsyncStreamingClient, Result, launch

QUESTIONS = ("What is a slot?", "What is a token?", "What is streaming?", "What is GGUF?")


async def ask(client: AsyncStreamingClient, number: int) -> Result:
    question = QUESTIONS[number % len(QUESTIONS)]
    stream = client.stream_chat([{"role": "user", "content": question}], temperature=0)
    async for _ in stream:
        pass  # a real program would hand the text on here
    return await stream.result()


async def run(url: str, count: int) -> None:
    async with AsyncStreamingClient(url) as client:
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(client, number)) for number in range(count)]
        seconds = time.monotonic() - started
    results = [task.result() for task in tasks]
    tokens = sum(result.stats.completion_tokens or 0 for result in results)
    first = sorted(result.stats.time_to_first_token or 0.0 for result in results)
    print(f"{len(results)} answers complete: {sum(result.finish_reason == 'stop' for result in results)}")
    print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s in all")
    print(f"first token: median {first[len(first) // 2] * 1000:.0f} ms, slowest {first[-1] * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream many answers at the same time.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    parser.add_argument("-n", "--count", type=int, default=16, help="how many streams (default: 16)")
    arguments = parser.parse_args()
    if arguments.url:
        asyncio.run(run(arguments.url, arguments.count))
    else:
        with launch() as engine:
            asyncio.run(run(engine.url, arguments.count))


if __name__ == "__main__":
    main()
