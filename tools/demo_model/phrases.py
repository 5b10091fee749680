"""Made-up material around the corpus: unknown questions, system prompts, tools, JSON and small variations."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

MATERIAL: dict[str, Any] = tomllib.loads((Path(__file__).parent / "phrases.toml").read_text("utf-8"))
# A tool, and what draws a question that needs it, with the arguments of the call.
Offer = tuple[dict[str, Any], Callable[[], tuple[str, dict[str, Any]]]]
PLAIN_SYSTEM = "You are a helpful assistant."


def gibberish(rng: random.Random) -> str:
    """A word that does not exist."""
    word = "".join(rng.choice(MATERIAL["syllables"]) for _ in range(rng.randint(2, 4)))
    if rng.random() < 0.15:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
    return word.capitalize() if rng.random() < 0.4 else word


def place(rng: random.Random) -> str:
    """A city, or an invented one: only copying helps with those."""
    if rng.random() < 0.5:
        return str(rng.choice(MATERIAL["cities"]))
    return " ".join(gibberish(rng).capitalize() for _ in range(rng.choice((1, 1, 1, 2))))


def fill(pattern: str, rng: random.Random) -> str:
    """Replace every placeholder of a pattern by something drawn at random."""
    makers: dict[str, Callable[[], str]] = {
        "{city}": lambda: place(rng),
        "{name}": lambda: gibberish(rng).capitalize() if rng.random() < 0.3 else rng.choice(MATERIAL["names"]),
        "{noun}": lambda: gibberish(rng) if rng.random() < 0.2 else rng.choice(MATERIAL["nouns"]),
        "{word}": lambda: rng.choice(MATERIAL["words"]),
        "{role}": lambda: rng.choice(MATERIAL["roles"]),
        "{number}": lambda: str(rng.choice([rng.randint(0, 20), rng.randint(20, 2030)])),
        "{gibberish}": lambda: gibberish(rng),
    }
    for mark, make in makers.items():
        while mark in pattern:
            pattern = pattern.replace(mark, make(), 1)
    return pattern


def system_prompt(rng: random.Random, sentences: list[str]) -> str:
    """A system prompt nobody has seen: stock phrases, sentences of the corpus and invented words."""
    if rng.random() < 0.3:
        return PLAIN_SYSTEM
    count = rng.choice((1, 1, 1, 2, 2, 3, 5, 10))
    parts = [
        rng.choice(sentences) if rng.random() < 0.25 else fill(rng.choice(MATERIAL["system"]), rng)
        for _ in range(count)
    ]
    return rng.choice((" ", " ", "\n", "\n- ")).join(parts)


def vary(question: str, rng: random.Random) -> str:
    """The same question, typed by somebody in a hurry."""
    if rng.random() < 0.45:
        return question
    if rng.random() < 0.5:
        question = question.rstrip("?.!")
    elif rng.random() < 0.2:
        question += rng.choice(("?", "!", "??", " ?", "..."))
    if rng.random() < 0.15:
        question = (
            rng.choice(("Please: ", "Hey, ", "Tell me: ", "Hello. ", "OK. ", "And ", "So, ", "Bitte: ")) + question
        )
    if rng.random() < 0.1:
        question += rng.choice((" Please.", " please", " Thanks!", " bitte", "\n", " ", " :)"))
    case = rng.random()
    if case < 0.35:
        question = question.lower()
    elif case < 0.4:
        question = question.upper()
    if rng.random() < 0.12 and len(question) > 6:
        at = rng.randrange(1, len(question) - 2)
        swapped = question[:at] + question[at + 1] + question[at] + question[at + 2 :]
        question = rng.choice((question[:at] + question[at + 1 :], swapped, question[:at] + question[at - 1 :]))
    return question


def tool_schema(name: str, description: str, parameters: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A tool in the shape of the OpenAI interface, more or less verbose as clients are."""
    properties: dict[str, Any] = {}
    for parameter, form in parameters.items():
        properties[parameter] = dict(form)
        if rng.random() < 0.3:
            properties[parameter]["description"] = rng.choice(
                (f"The {parameter}", f"Name of the {parameter}", parameter)
            )
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        schema["required"] = list(parameters)
    function: dict[str, Any] = {"name": name, "description": description, "parameters": schema}
    if rng.random() < 0.15:
        del function["description"]
    return {"type": "function", "function": function}


def known_tool(rng: random.Random) -> Offer:
    """A usual tool with one argument."""
    kind = rng.choice([*MATERIAL["tools"], MATERIAL["tools"][0], MATERIAL["tools"][0]])
    name, parameter = rng.choice(kind["names"]), rng.choice(kind["parameters"])
    tool = tool_schema(name, rng.choice(kind["descriptions"]), {parameter: {"type": "string"}}, rng)

    def ask() -> tuple[str, dict[str, Any]]:
        pattern = rng.choice(kind["questions"])
        mark = pattern[pattern.index("{") : pattern.index("}") + 1]
        value = fill(mark, rng)
        return pattern.replace(mark, value), {parameter: value}

    return tool, ask


def echo_tool(rng: random.Random) -> Offer:
    """A tool whose argument is a longer text out of the question; that is where copying is learned."""
    name, parameter = rng.choice(("echo", "send_message", "take_note", "say")), rng.choice(("text", "message", "note"))
    tool = tool_schema(name, rng.choice(("Repeat a text.", "Takes a text")), {parameter: {"type": "string"}}, rng)

    def ask() -> tuple[str, dict[str, Any]]:
        text = " ".join(place(rng) for _ in range(rng.choice((1, 1, 2, 4))))
        return rng.choice(("Echo {}", "Say {}.", "Note: {}", "Repeat {}!", "Send {}.")).format(text), {parameter: text}

    return tool, ask


def made_up_tool(rng: random.Random) -> Offer:
    """An invented tool that is asked for by its name, with a few short arguments that are named, too."""
    name = "_".join(gibberish(rng).lower() for _ in range(rng.randint(1, 2)))
    parameters: dict[str, Any] = {}
    for _ in range(rng.randint(1, 3)):
        form = rng.choice(({"type": "string"}, {"type": "string"}, {"type": "integer"}, {"type": "string", "enum": []}))
        if "enum" in form:
            form = {"type": "string", "enum": rng.sample(MATERIAL["words"], rng.randint(2, 3))}
        key = rng.choice(MATERIAL["json_keys"]) if rng.random() < 0.5 else gibberish(rng).lower()
        parameters[key] = form
    description = " ".join(rng.choice(MATERIAL["words"]) for _ in range(rng.randint(2, 6)))
    tool = tool_schema(name, description, parameters, rng)

    def ask() -> tuple[str, dict[str, Any]]:
        arguments = {
            key: place(rng) if form == {"type": "string"} else any_value(form, rng) for key, form in parameters.items()
        }
        question = rng.choice(("Use {}", "Call the tool {}", "Please call {}", "Run {}")).format(name)
        return f"{question} with {', '.join(str(value) for value in arguments.values())}.", arguments

    return tool, ask


def any_value(form: dict[str, Any], rng: random.Random) -> Any:
    """A value that fits the schema of a parameter."""
    if "enum" in form:
        return rng.choice(form["enum"])
    return rng.randint(0, 99) if form["type"] == "integer" else short_value(rng)


def any_arguments(schema: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Arguments that fit a tool and have nothing to do with a question."""
    return {key: any_value(form, rng) for key, form in schema["properties"].items()}


def short_value(rng: random.Random) -> str:
    """A short string, as the value of a JSON field."""
    kind = rng.random()
    if kind < 0.3:
        # One value that is likelier than all others: at temperature 0 it is what the model falls back on.
        return "demo"
    if kind < 0.5:
        # After a slip of the dice the text in a string may be anything; it has to end all the same.
        return " ".join(gibberish(rng) for _ in range(rng.randint(1, 3)))
    if kind < 0.56:
        words = str(rng.choice(MATERIAL["sentences"])).split(" ")
        begin = rng.randrange(len(words))
        return " ".join(words[begin:]) if rng.random() < 0.6 else " ".join(words[begin : begin + rng.randint(1, 5)])
    return str(
        rng.choice(
            (
                rng.choice(MATERIAL["names"]),
                rng.choice(MATERIAL["cities"]),
                rng.choice(MATERIAL["nouns"]),
                rng.choice(MATERIAL["words"]),
                "llama",
            )
        )
    )


def json_value(rng: random.Random, depth: int = 0) -> Any:
    """Any small JSON value."""
    kind = rng.random()
    if kind < 0.5:
        return short_value(rng)
    if kind < 0.7:
        return rng.randint(0, 99)
    if kind < 0.8:
        return rng.choice((True, False, None))
    if kind < 0.85:
        return round(rng.random() * 10, 1)
    if depth > 1:
        return short_value(rng)
    if kind < 0.95:
        return [json_value(rng, 2) for _ in range(rng.randint(1, 3))]
    return json_object(rng, depth + 1)


def json_object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A small JSON object with keys that are usual, or invented."""
    keys = (
        rng.choice(MATERIAL["json_keys"]) if rng.random() < 0.6 else gibberish(rng).lower()
        for _ in range(rng.randint(1, 4))
    )
    return {key: json_value(rng, depth) for key in keys}


def unknown_question(rng: random.Random) -> tuple[str, str]:
    """A question without an answer in the corpus, and its language."""
    language = "de" if rng.random() < 0.33 else "en"
    if rng.random() < 0.25:
        words = (
            [*MATERIAL["nouns"], *MATERIAL["words"], *MATERIAL["cities"]] if language == "en" else MATERIAL["german"]
        )
        start = rng.choice(MATERIAL[f"openings_{language}"])
        text = " ".join([start, *(rng.choice(words) for _ in range(rng.randint(2, 6)))]) + rng.choice("??.")
    else:
        text = fill(rng.choice(MATERIAL[f"unknown_{language}"]), rng)
    return vary(text, rng), language


def tool_call_text(name: str, arguments: dict[str, Any]) -> str:
    """What the assistant writes to call a tool."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
