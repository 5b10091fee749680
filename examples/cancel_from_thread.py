"""Stop an answer from another thread, as a Stop button does, and see the slot on the server become free.

python examples/cancel_from_thread.py [--url http://localhost:8080] [--after 20]
"""

import argparse
import threading
import time

from llamastream import StreamingClient, launch


def busy_slots(client: StreamingClient) -> int:
    return sum(1 for slot in client.slots() if slot["is_processing"])


def show(url: str, after: int) -> None:
    client = StreamingClient(url)
    # ignore_eos is llama-server's own: the model may not stop by itself, so that there is something to stop
    question = [{"role": "user", "content": "Tell me a long story."}]
    stream = client.stream_chat(question, max_tokens=4000, ignore_eos=True)
    button = threading.Event()

    def stop_when_pressed() -> None:
        button.wait()
        stream.cancel()  # the one method of a stream that any thread may call

    threading.Thread(target=stop_when_pressed, daemon=True).start()
    for number, text in enumerate(stream, start=1):  # ends quietly when the stream is cancelled
        print(text, end="", flush=True)
        if number == after:
            button.set()
    print()
    cancelled = time.monotonic()
    partial = stream.result()
    print(f"ended by: {partial.finish_reason}, kept: {len(partial.text)} characters")
    while busy_slots(client) and time.monotonic() - cancelled < 10:
        time.sleep(0.01)
    print(f"busy slots: {busy_slots(client)}, after {(time.monotonic() - cancelled) * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cancel a stream from another thread.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    parser.add_argument("--after", type=int, default=20, metavar="N", help="cancel after N pieces of text")
    arguments = parser.parse_args()
    if arguments.url:
        show(arguments.url, arguments.after)
    else:
        with launch() as engine:
            show(engine.url, arguments.after)


if __name__ == "__main__":
    main()
