"""What the demo model lacks: a model with random weights, and a template with reasoning."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from llamastream.engine.demo import demo_model_path

THINKING = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '</think>' }}
        {%- endif %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}"""
"""All is reasoning until `</think>`, which the demo model does not know: `reasoning_budget_tokens` makes it come."""

_VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _F16 = 8, 9, 1


class _Gguf:
    """Where the tensors of a GGUF file are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 4
        self._number("I")
        tensors, keys = self._number("Q"), self._number("Q")
        for _ in range(keys):
            self._string()
            self._skip(self._number("I"))
        self.tensors: list[tuple[str, int, int, int]] = []
        for _ in range(tensors):
            name, count = self._string(), 1
            for _ in range(self._number("I")):
                count *= self._number("Q")
            self.tensors.append((name, self._number("I"), count, self._number("Q")))
        self.start = (self._at + 31) // 32 * 32

    def _number(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _string(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            kind, count = self._number("I"), self._number("Q")
            for _ in range(count):
                self._skip(kind)
        else:
            self._number(_VALUES[kind])


def write_random_model(path: Path, *, seed: int = 1, deviation: float = 0.08) -> None:
    """The demo model with random weights: at temperature 1 it writes syllables without end, and no two runs agree."""
    data = bytearray(demo_model_path().read_bytes())
    layout = _Gguf(bytes(data))
    chance = random.Random(seed)
    for _, kind, count, offset in layout.tensors:
        if kind == _F16:
            values = [chance.gauss(0, deviation) for _ in range(count)]
            struct.pack_into(f"<{count}e", data, layout.start + offset, *values)
    path.write_bytes(data)
