"""Tool calls as data: one call, what is wrong with it, how it goes into the next request, and what a server can do."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct


class ToolCall(Struct, frozen=True):
    """A tool call; `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str

    @property
    def malformed(self) -> str | None:
        """Why this call cannot be carried out, or None: it has no name, or its arguments are no JSON object.

        Models write such calls, and `max_tokens` and `stop` cut good ones. Whether the arguments fit the tool's schema
        is not looked at.
        """
        if not self.name:
            return "the call has no name"
        arguments, why = self._read()
        if why or not isinstance(arguments, dict):
            return f"the arguments of tool call {self.name!r} are {why or type(arguments).__name__ + ', no object'}"
        return None

    def parsed_arguments(self) -> Any:
        """The arguments as Python data.

        Raises:
            ValueError: the model wrote something that is not JSON.
        """
        arguments, why = self._read()
        if why:
            raise ValueError(f"the arguments of tool call {self.name!r} are {why}: {self.arguments!r}")
        return arguments

    def _read(self) -> tuple[Any, str]:
        """The arguments, and why they cannot be read ("" if they can)."""
        try:
            return json.loads(self.arguments or "{}"), ""
        except (ValueError, RecursionError) as error:
            return None, f"not JSON ({error})"

    def to_message(self) -> dict[str, Any]:
        """The call as an entry of `tool_calls` in the assistant's message of the next request.

        Templates read the arguments as JSON, and llama-server refuses a history in which they are none. So arguments
        that are malformed are shown to the model as a JSON string: the text that it wrote.
        """
        arguments = self.arguments or "{}"
        if self._read()[1]:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class ToolSupport(Struct, frozen=True):
    """What a server does with requests that have tools; None: not known.

    Attributes:
        accepted: it takes them. False: it was started without `--jinja`.
        rendered: the template shows the tools to the model. False: it does not, and the server says no word of it.
        streamed: it streams the answers. False: a whole answer must be asked for, as clients of this package do then.
        parallel: the template knows several calls in one answer.
        reason: what the server said, where it refuses something; else "".
    """

    accepted: bool | None = None
    rendered: bool | None = None
    streamed: bool | None = None
    parallel: bool | None = None
    reason: str = ""
