"""What the verification puts around the questions: system prompts, unknown questions, tools and schemas."""

from __future__ import annotations

from typing import Any

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Captain Sparrow, a retired sailor. Answer every question with patience and never use more than 90 words.",
    "Du bist ein sachlicher Assistent einer Stadtbibliothek in Potsdam. Antworte immer höflich.",
    "Rules:\n1. Be exact.\n2. Cite no sources.\n3. Date: 2031-05-17.\nThe customer's plan is GOLD (id 7f3a-99).",
)
UNKNOWN = (
    ("What is the tallest mountain in Peru?", "en"),
    ("Who painted the Mona Lisa?", "en"),
    ("Can you book me a flight to Rome?", "en"),
    ("How many legs has a spider?", "en"),
    ("Write an email to my boss.", "en"),
    ("Is tea healthier than coffee?", "en"),
    ("Wie hoch ist der Eiffelturm?", "de"),
    ("Wer hat die Glühbirne erfunden?", "de"),
    ("Wie backe ich einen Apfelkuchen?", "de"),
    ("Was ist die Hauptstadt von Portugal?", "de"),
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
TICKET: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "create_ticket",
        "description": "Create a support ticket in the tracker.",
        "parameters": {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "priority": {"type": "string", "enum": ["low", "high"]},
                "count": {"type": "integer"},
            },
            "required": ["title", "priority"],
        },
    },
}
SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"answer": {"type": "string"}, "sources": {"type": "array", "items": {"type": "string"}}},
        "required": ["answer", "sources"],
    },
    {
        "type": "object",
        "properties": {
            "person": {"type": "object", "properties": {"first_name": {"type": "string"}}, "required": ["first_name"]},
            "rating": {"type": "number"},
            "mood": {"type": "string", "enum": ["good", "bad"]},
            "ok": {"type": "boolean"},
        },
        "required": ["person", "rating", "mood", "ok"],
    },
)
