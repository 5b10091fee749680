"""Settings of somebody else's object, by their usual names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llamastream.errors import SettingError

_ARGUMENTS = {
    "llm_base_url": "base_url",
    "llm_api_key": "api_key",
    "llm_model": "model",
    "llm_temperature": "temperature",
    "llm_max_tokens": "max_tokens",
}


def values_of(source: Any, without: Collection[str]) -> Iterator[tuple[str, Any, str]]:
    """Each argument of a client that the object (or mapping) has a value for, the value, and what to call its source;
    but not the arguments `without`.

    Raises:
        SettingError: it has none at all, or its list of addresses is empty.
    """
    kind = "the mapping" if isinstance(source, Mapping) else source.__name__ if isinstance(source, type) else ""
    kind = kind or type(source).__name__
    any_there = False
    for name, argument in _ARGUMENTS.items():
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        reveal = getattr(value, "get_secret_value", None)
        value = reveal() if callable(reveal) else value
        any_there = any_there or value is not None
        if value is None or argument in without:
            continue
        shown = f"{name} of {kind}"
        yield argument, _address_text(value, shown) if argument == "base_url" else value, shown
    if not any_there:
        raise SettingError(f"{kind} has none of the settings {', '.join(_ARGUMENTS)}; set at least llm_base_url")


def _address_text(value: Any, shown: str) -> str:
    """One or several addresses as one text; what is no text, such as a URL object of pydantic, is asked for its own."""
    if not isinstance(value, list | tuple):
        return str(value)
    if not value:
        raise SettingError(f"{shown} is an empty list; give at least one address")
    return " ".join(map(str, value))
