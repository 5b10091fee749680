"""The header reader: right about whole files, clear about broken ones, bounded about hostile ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamastream.engine.facts import model_fact
from llamastream.engine.gguf import GgufError, read_gguf
from llamastream.engine.resolve import check_model
from llamastream.errors import ModelFileError


def test_the_header_of_a_whole_file(tiny_model: str) -> None:
    info = read_gguf(tiny_model)
    assert (info.architecture, info.name, info.version, info.tensors) == ("llama", "tiny", 3, 12)
    assert (info.n_ctx_train, info.n_layer, info.n_embd, info.n_head, info.n_head_kv) == (2048, 1, 32, 2, 2)
    assert info.chat_template
    assert info.split_count == 1
    assert info.size == Path(tiny_model).stat().st_size
    assert info.kv_bytes_per_token() == 2 * 1 * 2 * (16 + 16)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begins with b''"),
        (b"hello, I am text", "begins with b'hell'"),
        (b"GGUF", "cut off"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 40), "announces"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 40) + b"x" * 99, "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60), "cut off"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError) as caught:
        read_gguf(path)
    assert said in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(0, 5000), flip=st.integers(0, 4999), bits=st.integers(0, 255))
def test_any_damage_is_a_clear_error_or_harmless(
    tmp_path: Path, tiny_model: str, cut: int, flip: int, bits: int
) -> None:
    data = bytearray(Path(tiny_model).read_bytes()[:cut])
    if flip < len(data):
        data[flip] ^= bits
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    try:
        info = read_gguf(path)
    except GgufError:
        return
    assert info.size == len(data)


def test_checks_before_a_start(tmp_path: Path, tiny_model: str) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        check_model(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelFileError, match="is a directory"):
        check_model(str(tmp_path))
    assert check_model(tiny_model).name == "tiny"
    assert "does not exist" in model_fact(str(tmp_path / "none.gguf")).problem
    found = model_fact(tiny_model)
    assert found.info is not None
    assert found.problem == ""
