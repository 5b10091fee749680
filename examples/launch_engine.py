"""Start a llama-server from Python, use it, and leave no process behind.

python examples/launch_engine.py [--model model.gguf] [--parallel 2]
python examples/launch_engine.py --url http://localhost:8080      (looks at a server that runs already)
"""

import argparse

from llamastream import EngineOptions, StreamingClient, launch


def look(url: str) -> None:
    with StreamingClient(url) as client:
        client.wait_until_ready(timeout=60)
        props = client.props()
        result = client.chat([{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=200)
        print(f"url: {client.base_url}, slots: {props['total_slots']}, models: {', '.join(client.models())}")
        print(result.text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a llama-server, ask it one question, stop it.")
    parser.add_argument("--url", help="look at this running llama-server instead of starting one")
    parser.add_argument("--model", help="a GGUF file; without it the demo model")
    parser.add_argument("--parallel", type=int, default=2, help="slots (default: 2)")
    arguments = parser.parse_args()
    if arguments.url:
        look(arguments.url)
        return
    options = EngineOptions(model=arguments.model, parallel=arguments.parallel)
    with launch(options) as engine:
        print(f"{engine.kind} engine, pid {engine.pid}, ready in {engine.start_seconds:.2f} s")
        for warning in engine.warnings:
            print(f"note: {warning}")
        look(engine.url)
    print(f"running: {engine.alive}")


if __name__ == "__main__":
    main()
