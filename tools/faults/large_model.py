"""A model of any size with random weights and the demo model's vocabulary, for what a tiny one is too quick: prefill.

Its text is noise, its speed is that of a real model of its shape. The weights are one block of random numbers over and
over, so that hundreds of megabytes are written in a second.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from llamastream.engine.demo import demo_model_path

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _F16 = 0, 1
_ALIGN = 32
_BLOCK = 1 << 16


class _Header:
    """The keys of a GGUF file as raw bytes (GGUF specification, version 3)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 8
        self._take("Q")
        self.keys: dict[str, bytes] = {}
        self.vocabulary = 0
        for _ in range(self._take("Q")):
            name = self._string()
            begin = self._at
            self._skip(self._take("I"), name)
            self.keys[name] = data[begin : self._at]

    def _take(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _string(self) -> str:
        length = self._take("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _skip(self, kind: int, name: str) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            inner, count = self._take("I"), self._take("Q")
            if name == "tokenizer.ggml.tokens":
                self.vocabulary = count
            for _ in range(count):
                self._skip(inner, "")
        else:
            self._at += struct.calcsize(f"<{_FORMATS[kind]}")


def _tensors(width: int, hidden: int, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (width, vocabulary)
    for layer in range(layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (width,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{name}.weight", (width, width)
        yield f"{block}.ffn_norm.weight", (width,)
        yield f"{block}.ffn_gate.weight", (width, hidden)
        yield f"{block}.ffn_up.weight", (width, hidden)
        yield f"{block}.ffn_down.weight", (hidden, width)
    yield "output_norm.weight", (width,)


def write_large_model(path: Path, *, width: int = 768, layers: int = 12, context: int = 8192, seed: int = 1) -> int:
    """Write the file; its size in bytes.

    Args:
        width: of the embedding, a multiple of 64. layers: how many. context: training context in tokens.
    """
    header = _Header(demo_model_path().read_bytes())
    hidden = width * 8 // 3 // 64 * 64
    shape = {
        "context_length": context,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": hidden,
        "attention.head_count": width // 64,
        "attention.head_count_kv": width // 64,
        "rope.dimension_count": 64,
    }
    for name, value in shape.items():
        header.keys[f"llama.{name}"] = struct.pack("<II", 4, value)
    chance = random.Random(seed)
    half = struct.pack(f"<{_BLOCK}e", *(chance.gauss(0, 0.02) for _ in range(_BLOCK)))
    ones = struct.pack("<f", 1.0)
    tensors = list(_tensors(width, hidden, layers, header.vocabulary))
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(header.keys)))
        for name, raw in header.keys.items():
            file.write(struct.pack("<Q", len(name)) + name.encode() + raw)
        offset, sizes = 0, []
        for name, dimensions in tensors:
            count = 1
            for dimension in dimensions:
                count *= dimension
            kind, size = (_F32, 4 * count) if len(dimensions) == 1 else (_F16, 2 * count)
            file.write(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dimensions)))
            file.write(struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind, offset))
            offset += -(-size // _ALIGN) * _ALIGN
            sizes.append((kind, size))
        file.write(bytes(-file.tell() % _ALIGN))
        for kind, size in sizes:
            block = half if kind == _F16 else ones * (len(half) // 4)
            whole, rest = divmod(size, len(block))
            for _ in range(whole):
                file.write(block)
            file.write(block[:rest] + bytes(-size % _ALIGN))
        return file.tell()
