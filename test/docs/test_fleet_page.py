"""docs/fleet.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from llamastream.fleet.configuration import configure
from llamastream.fleet.messages import Request, decode_request
from llamastream.fleet.pools import plan
from llamastream.fleet.records import Record, as_dict
from llamastream.policy.instances import STATES

PAGE = (Path(__file__).parents[2] / "docs/fleet.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_settings_file_makes_the_instances_that_the_page_names(tmp_path: Path) -> None:
    (toml,) = blocks("toml")
    (tmp_path / "config.toml").write_text(toml)
    pools = configure({}, {}, environ={"LLAMASTREAM_CONFIG": str(tmp_path / "config.toml")}).pools
    plans = plan(pools, cores=8, cache_ram=0)
    assert {each.id: each.options.port for each in plans} == {
        "chat-0": 8080, "chat-1": 8081, "chat-2": 8082, "code-0": 8083,
    }  # fmt: skip
    assert all(f"`{each.id}`" in PAGE for each in plans)


def test_every_state_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", PAGE, re.MULTILINE)) >= set(STATES.items())


def test_the_log_line_is_one_as_it_is_written() -> None:
    (line,) = map(json.loads, blocks("json"))
    fields = {name: line[name] for name in ("before", "after", "generation", "last_exit")}
    written = as_dict(
        Record(time=0.0, level="warning", event="state", message=line["message"], instance="chat-0", fields=fields)
    )
    assert list(written) == list(line)
    assert {**written, "time": line["time"]} == line


def example(kind: msgspec.inspect.Type) -> object:
    """A value of this type, for the fields that requests have."""
    if isinstance(kind, msgspec.inspect.StrType):
        return "a"
    return 1.0 if isinstance(kind, msgspec.inspect.FloatType) else ["a"]


@pytest.mark.parametrize("request_type", msgspec.inspect.type_info(Request).types)  # type: ignore[attr-defined]  # a union
def test_every_request_is_named(request_type: msgspec.inspect.StructType) -> None:
    assert f"`{request_type.tag}`" in PAGE
    required = {field.encode_name: example(field.type) for field in request_type.fields if field.required}
    assert decode_request(json.dumps({"do": request_type.tag, **required}).encode())
