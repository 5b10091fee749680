"""A bounded reader of GGUF headers: what a model is, without loading it.

Only metadata is read, never a tensor; strings and arrays of tokens are skipped, so a 100 GB file costs milliseconds.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

MAGIC = b"GGUF"
# a header with a vocabulary of a million tokens has some 40 MB; beyond this the file is damaged or hostile
MAX_HEADER = 256 << 20
MAX_STRING = 1 << 20
CHUNK = 1 << 20
MAX_KEYS = 65_536

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """The file is no GGUF file, or a damaged one; the message says what was found."""


class GgufInfo(Struct, frozen=True):
    """The header of a GGUF file.

    Attributes:
        path, size: the file and its bytes. version: GGUF version. tensors: number of tensors.
        architecture, name: `general.architecture` and `general.name`, or "".
        n_ctx_train: training context in tokens. n_layer, n_embd, n_head, n_head_kv, key_length, value_length:
            the shape, 0 where the header does not say (or says it per layer).
        split_count: number of files of a split model, 1 if it is not split.
        chat_template: whether the model brings a chat template.
    """

    path: str
    size: int
    version: int
    tensors: int
    architecture: str = ""
    name: str = ""
    n_ctx_train: int = 0
    n_layer: int = 0
    n_embd: int = 0
    n_head: int = 0
    n_head_kv: int = 0
    key_length: int = 0
    value_length: int = 0
    split_count: int = 1
    chat_template: bool = False

    def kv_bytes_per_token(self) -> int:
        """Memory of one token of context at the default F16 cache; 0 if the header does not say enough.

        An upper bound: sliding-window, latent (MLA) and recurrent layers need less.
        """
        head_kv = self.n_head_kv or self.n_head
        if not (self.n_layer and head_kv and self.n_head and self.n_embd):
            return 0
        head_dim = self.n_embd // self.n_head
        return 2 * self.n_layer * head_kv * ((self.key_length or head_dim) + (self.value_length or head_dim))


def read_gguf(path: str | os.PathLike[str]) -> GgufInfo:
    """Read the header of a GGUF file.

    Raises:
        GgufError: no GGUF file, or its header is damaged or cut off.
        OSError: the file cannot be read.
    """
    file_path = Path(path)
    with file_path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic != MAGIC:
            raise GgufError(f"it begins with {magic!r}, a GGUF file with {MAGIC!r}")
        reader = _Reader(file, magic)
        version = reader.number("<I")
        if not 1 <= version <= 3:
            # a big-endian file shows its version in the wrong half
            raise GgufError(f"its GGUF version is {version}; 1 to 3 are known (a big-endian file is not supported)")
        wide = "<I" if version == 1 else "<Q"
        reader.length_format = wide
        tensors, keys = reader.number(wide), reader.number(wide)
        if keys > MAX_KEYS:
            raise GgufError(f"its header announces {keys} entries, more than {MAX_KEYS}: it is damaged")
        meta: dict[str, int | float | str] = {}
        for _ in range(keys):
            key = reader.string()
            value = reader.value(reader.number("<I"), key)
            if value is not None:
                meta[key] = value
    architecture = str(meta.get("general.architecture", ""))

    def shape(name: str) -> int:
        value = meta.get(f"{architecture}.{name}", 0)
        return int(value) if isinstance(value, int | float) else 0

    return GgufInfo(
        path=str(file_path), size=size, version=version, tensors=tensors, architecture=architecture,
        name=str(meta.get("general.name", "")), n_ctx_train=shape("context_length"), n_layer=shape("block_count"),
        n_embd=shape("embedding_length"), n_head=shape("attention.head_count"),
        n_head_kv=shape("attention.head_count_kv"), key_length=shape("attention.key_length"),
        value_length=shape("attention.value_length"), split_count=int(meta.get("split.count", 1) or 1),
        chat_template="tokenizer.chat_template" in meta,
    )  # fmt: skip


class _Reader:
    """Reads little-endian values from the file's beginning, in chunks, and never past `MAX_HEADER`."""

    def __init__(self, file: BinaryIO, start: bytes) -> None:
        self._file = file
        self._data = bytearray(start)
        self._at = len(start)
        self.length_format = "<Q"

    def _have(self, end: int) -> None:
        """Make sure that the bytes up to `end` are there."""
        while len(self._data) < end:
            chunk = self._file.read(CHUNK) if end <= MAX_HEADER else b""
            if not chunk:
                raise GgufError("it ends within its header: it is cut off (an unfinished download?) or damaged")
            self._data += chunk

    def take(self, count: int) -> bytes:
        end = self._at + count
        self._have(end)
        data = bytes(self._data[self._at : end])
        self._at = end
        return data

    def skip(self, count: int) -> None:
        self._have(self._at + count)
        self._at += count

    def number(self, fmt: str) -> int:
        return int(struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0])

    def string(self) -> str:
        length = self.number(self.length_format)
        if length > MAX_STRING:
            raise GgufError(f"its header holds a name of {length} bytes: it is damaged")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, key: str) -> int | float | str | None:
        """One value; None for arrays, which are skipped. Long strings (templates) are skipped and count as ""."""
        if kind in _SCALARS:
            fmt = _SCALARS[kind]
            number: int | float = struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]
            return number
        if kind == _STRING:
            length = self.number(self.length_format)
            if length > 4096:
                self.skip(length)
                return ""
            return self.take(length).decode("utf-8", "replace")
        if kind == _ARRAY:
            self._skip_array(key)
            return None
        raise GgufError(f"its entry {key!r} has the unknown type {kind}: it is damaged, or newer than this reader")

    def _skip_array(self, key: str) -> None:
        kind, count = self.number("<I"), self.number(self.length_format)
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            self._skip_strings(count)
        else:
            raise GgufError(f"its entry {key!r} is an array of the unknown type {kind}: it is damaged")

    def _skip_strings(self, count: int) -> None:
        # a vocabulary has up to some 260,000 of them, hence no function call for each
        length = struct.Struct(self.length_format)
        size, unpack = length.size, length.unpack_from
        data, at = self._data, self._at
        have = len(data)
        for _ in range(count):
            if at + size > have:
                self._have(at + size)
                have = len(data)
            at += size + unpack(data, at)[0]
        self._have(at)
        self._at = at
