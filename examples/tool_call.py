"""A tool call: the model asks for a function, we run it, the model gets the result.

python examples/tool_call.py [--url http://localhost:8080]

The demo model has learnt the form of a tool call, not its meaning: expect a made-up city. Give the URL of a server with
a larger model for sensible arguments.
"""

import argparse
from typing import Any

from llamastream import StreamingClient, ToolCall, launch

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def run_tool(call: ToolCall) -> str:
    arguments = call.parsed_arguments()
    return f"18 degrees and sunny in {arguments['city']}"


def converse(url: str) -> None:
    client = StreamingClient(url, temperature=0)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    result = client.chat(messages, tools=TOOLS, tool_choice="required", max_tokens=400)
    print(f"ended by: {result.finish_reason}")
    messages.append(result.to_message())
    for call in result.tool_calls:
        output = call.malformed or run_tool(call)  # the model should know what was wrong with its call
        print(f"{call.name}({call.arguments}) -> {output}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    for text in client.stream_chat(messages, tools=TOOLS, max_tokens=400):
        print(text, end="", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="One round of tool calling.")
    parser.add_argument("--url", help="a running llama-server; without it the demo engine is started")
    arguments = parser.parse_args()
    if arguments.url:
        converse(arguments.url)
    else:
        with launch() as engine:
            converse(engine.url)


if __name__ == "__main__":
    main()
