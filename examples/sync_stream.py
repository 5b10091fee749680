"""Print an answer as it is generated, then what it cost.

python examples/sync_stream.py [--url http://localhost:8080] ["Your question"]
"""

import argparse

from llamastream import StreamingClient, launch


def answer(url: str, question: str) -> None:
    with StreamingClient(url) as client:
        stream = client.stream_chat([{"role": "user", "content": question}], temperature=0)
        for text in stream:
            print(text, end="", flush=True)
        print()
        result = stream.result()  # everything is here by now: nothing more is read
        print(f"ended by: {result.finish_reason}, tokens: {result.stats.completion_tokens}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream one answer with the synchronous client.")
    parser.add_argument("question", nargs="?", default="Tell me a story.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    arguments = parser.parse_args()
    if arguments.url:
        answer(arguments.url, arguments.question)
    else:
        with launch() as engine:
            answer(engine.url, arguments.question)


if __name__ == "__main__":
    main()
