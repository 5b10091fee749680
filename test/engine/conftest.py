"""What the engine's tests share: both kinds of engine, a tiny model with random weights, pretended servers."""

from __future__ import annotations

import array
import math
import random
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamastream.engine import EngineOptions
from llamastream.engine.embedded import embedded_version
from llamastream.engine.probe import find_binary

HELP = Path(__file__).with_name("help")
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, kind: int, value: Any) -> bytes:
    head = _text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + _text(value)
    if kind == ARRAY:
        element, values = value
        items = (_text(v) if element == STRING else struct.pack("<i", v) for v in values)
        return head + struct.pack("<IQ", element, len(values)) + b"".join(items)
    return head + struct.pack({U32: "<I", F32: "<f"}[kind], value)


def tiny_gguf(*, ctx: int = 2048, width: int = 32, seed: int = 1) -> bytes:
    """A llama model of one layer with random weights and a byte-level vocabulary: answers nonsense, but answers."""
    heads, ff = 2, 2 * width
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in letters]
    tokens = [chr(b) for b in letters] + [chr(256 + n) for n in range(len(rest))] + ["th", "<|im_start|>", "<|im_end|>"]
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    meta = [
        _entry("general.architecture", STRING, "llama"),
        _entry("general.name", STRING, "tiny"),
        _entry("llama.context_length", U32, ctx),
        _entry("llama.embedding_length", U32, width),
        _entry("llama.block_count", U32, 1),
        _entry("llama.feed_forward_length", U32, ff),
        _entry("llama.attention.head_count", U32, heads),
        _entry("llama.attention.head_count_kv", U32, heads),
        _entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        _entry("llama.rope.dimension_count", U32, width // heads),
        _entry("tokenizer.ggml.model", STRING, "gpt2"),
        _entry("tokenizer.ggml.pre", STRING, "gpt-2"),
        _entry("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        _entry("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 257 + [3, 3])),
        _entry("tokenizer.ggml.merges", ARRAY, (STRING, ["t h"])),
        _entry("tokenizer.ggml.bos_token_id", U32, 257),
        _entry("tokenizer.ggml.eos_token_id", U32, 258),
        _entry("tokenizer.chat_template", STRING, template),
    ]
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (width, len(tokens))),
        ("output_norm.weight", (width,)),
        ("output.weight", (width, len(tokens))),
        ("blk.0.attn_norm.weight", (width,)),
        ("blk.0.ffn_norm.weight", (width,)),
        ("blk.0.ffn_gate.weight", (width, ff)),
        ("blk.0.ffn_up.weight", (width, ff)),
        ("blk.0.ffn_down.weight", (ff, width)),
        *((f"blk.0.attn_{name}.weight", (width, width)) for name in ("q", "k", "v", "output")),
    ]
    rng = random.Random(seed)
    infos = data = b""
    for name, shape in tensors:
        infos += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", 0, len(data))
        norm = len(shape) == 1
        values = array.array("f", [1.0 if norm else rng.gauss(0, 0.3) for _ in range(math.prod(shape))])
        data += values.tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(meta) + infos
    return head + bytes(-len(head) % 32) + data


@pytest.fixture(scope="session")
def tiny_bytes() -> bytes:
    return tiny_gguf()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_bytes: bytes) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_bytes)
    return str(path)


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with room for long answers, for streams that must not end by themselves."""
    path = tmp_path_factory.mktemp("model") / "long.gguf"
    path.write_bytes(tiny_gguf(ctx=65_536))
    return str(path)


@pytest.fixture(params=["embedded", "executable"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of engine; a kind that is not installed is skipped."""
    name: str = request.param
    if name == "executable" and find_binary() is None:
        pytest.skip("no llama-server executable in LLAMA_SERVER_BIN or PATH")
    if name == "embedded" and embedded_version() is None:
        pytest.skip("the package xllamacpp is not installed")
    return name


@pytest.fixture
def options(kind: str, tiny_model: str) -> Callable[..., EngineOptions]:
    """Options for the tiny model and the kind under test, with changes."""

    def make(**changes: Any) -> EngineOptions:
        values: dict[str, Any] = {"kind": kind, "model": tiny_model, "start_timeout": 60.0}
        return EngineOptions(**values | changes)

    return make


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary directory whose path is short enough for Unix sockets on every system."""
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[..., str]:
    """Makes an executable that prints a recorded help and otherwise runs the given Python code.

    The code finds the port that it is to listen on in `port`, and `serve()` to answer `/health` with 200 on it.
    """

    def make(code: str, *, age: int = 2026, name: str = "llama-server") -> str:
        path = tmp_path / name
        path.write_text(_PRETENDED.format(python=sys.executable, help=str(HELP / f"{age}.txt"), code=code), "utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


_PRETENDED = """#!{python} -S
import os, sys, time
if "--version" in sys.argv:
    print("version: 1 (pretended)", file=sys.stderr)
    sys.exit(0)
if "--help" in sys.argv:
    print(open({help!r}).read())
    sys.exit(0)
port = int(sys.argv[sys.argv.index("--port") + 1])

def serve(announce=None):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
        def log_message(self, *_):
            pass
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if announce:
        print(announce.format(port=server.server_port), flush=True)
    server.serve_forever()

{code}
"""
