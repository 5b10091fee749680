"""Options say at once what is wrong, and never show the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamastream.engine import EngineOptions, launch
from llamastream.engine.gguf import GgufInfo
from llamastream.engine.resolve import check_memory, default_ctx
from llamastream.errors import EngineMemoryError, SettingError
from llamastream.settings import declared


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "a", "hf": "b/c"}, "give one"),
        ({"port": 65536}, "port"),
        ({"port": -1}, "port"),
        ({"parallel": 0}, "parallel"),
        ({"parallel": "4"}, "parallel"),
        ({"ctx_size": 0}, "ctx_size"),
        ({"kind": "docker"}, "kind"),
        ({"socket": "/a.sock", "port": 1}, "both socket"),
        ({"socket": "/a.sock", "host": "::1"}, "both socket"),
        ({"socket": "/a"}, "'.sock'"),
        ({"socket": "/" + "x" * 120 + ".sock"}, "shorter path"),
        ({"socket": "/a,b.sock"}, "comma"),
        ({"gpu_layers": 3}, "gpu is off"),
        ({"hf": "noslash"}, "USER/REPO"),
        ({"hf": "a/b:"}, "USER/REPO"),
        ({"model": ""}, "is empty"),
        ({"sse_ping_interval": 0}, "at least 1"),
        ({"kind": "embedded", "binary": "/x"}, "runs no executable"),
        ({"timeout": 0}, "timeout"),
        ({"start_timeout": 0.0}, "start_timeout"),
        ({"extra_args": ("a\0b",)}, "NUL"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        EngineOptions(**values)
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["two words ", "#comment", "a,b", "line\nbreak", "ümlaut", ""])
def test_wrong_keys_are_refused_without_showing_them(key: str) -> None:
    with pytest.raises(SettingError) as caught:
        EngineOptions(api_key=key)
    assert "api_key" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_the_key_is_in_no_representation() -> None:
    options = EngineOptions(api_key="topsecret", parallel=2)
    assert "topsecret" not in repr(options)
    assert repr(options) == "EngineOptions(parallel=2, api_key='***')"
    assert ("api_key", "***") in list(options.__rich_repr__())
    assert "topsecret" not in repr(launch(options))


def test_a_key_of_the_wrong_type_is_not_shown() -> None:
    with pytest.raises(SettingError) as caught:
        EngineOptions(api_key=12345678)  # type: ignore[arg-type]
    assert "12345678" not in str(caught.value)


def test_paths_and_lists_are_accepted() -> None:
    options = EngineOptions(model=Path("/m.gguf"), extra_args=["--jinja"])  # type: ignore[arg-type]
    assert options.model == "/m.gguf"
    assert options.extra_args == ("--jinja",)


def test_every_field_is_declared_for_the_command_line() -> None:
    fields = {field.name: field for field in declared(EngineOptions)}
    assert all(field.description.endswith(".") for field in fields.values())
    assert fields["api_key"].secret
    assert [name for name, field in fields.items() if field.secret] == ["api_key"]


def info(**changes: Any) -> GgufInfo:
    values: dict[str, Any] = {
        "path": "m", "size": 1, "version": 3, "tensors": 1, "architecture": "llama", "n_ctx_train": 131072,
        "n_layer": 32, "n_embd": 4096, "n_head": 32, "n_head_kv": 8,
    }  # fmt: skip
    return GgufInfo(**values | changes)


def test_default_context_fits_the_model_and_the_memory() -> None:
    gib = 2**30
    assert default_ctx(None, 4, 64 * gib) == 8192
    assert default_ctx(info(n_ctx_train=2048), 4, 64 * gib) == 2048
    assert default_ctx(info(), 4, 64 * gib) == 8192
    # 128 KiB a token: 4 slots of 8192 take 4 GiB
    assert info().kv_bytes_per_token() == 128 * 1024
    assert default_ctx(info(), 4, 4 * gib) == 4096
    assert default_ctx(info(), 4, 1) == 1024
    assert default_ctx(info(n_layer=0), 4, 1) == 8192  # unknown shape: no guess


def test_a_context_that_cannot_fit_is_refused_before_the_start() -> None:
    gib = 2**30
    asked = EngineOptions(ctx_size=131072, parallel=4)
    with pytest.raises(EngineMemoryError, match=r"64\.0 GiB"):
        check_memory(info(), asked, 32 * gib)
    check_memory(info(), asked, 65 * gib)
    check_memory(info(architecture="deepseek2"), asked, 32 * gib)  # its cache is smaller than the formula says
    check_memory(info(), EngineOptions(ctx_size=131072, extra_args=("-ctk", "q8_0")), 32 * gib)


def test_a_launch_is_for_one_server(tmp_path: Path) -> None:
    starting = launch(EngineOptions(model=str(tmp_path / "none.gguf"), kind="embedded"))
    with pytest.raises(Exception, match="does not exist"):
        starting.start()
    with pytest.raises(Exception, match="has been used"):
        starting.start()
