"""The same as sync_stream.py in asyncio: the event loop stays free while the answer comes in.

python examples/async_stream.py [--url http://localhost:8080] ["Your question"]
"""

import argparse
import asyncio

from llamastream import AsyncStreamingClient, launch


async def answer(url: str, question: str) -> None:
    async with AsyncStreamingClient(url) as client:
        stream = client.stream_chat([{"role": "user", "content": question}], temperature=0)
        async for text in stream:
            print(text, end="", flush=True)
        print()
        result = await stream.result()
        print(f"ended by: {result.finish_reason}, tokens: {result.stats.completion_tokens}")


async def run(url: str | None, question: str) -> None:
    if url:
        await answer(url, question)
    else:
        async with launch() as engine:
            await answer(engine.url, question)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream one answer with the asyncio client.")
    parser.add_argument("question", nargs="?", default="Tell me a story.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.url, arguments.question))


if __name__ == "__main__":
    main()
