"""Flags against recorded help texts: nothing that a build does not know reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.engine import EngineOptions
from llamastream.engine.attributes import translate
from llamastream.engine.flags import CommandLine, command_line, hidden, http_threads
from llamastream.engine.helptext import parse_help
from llamastream.errors import SettingError, UnsupportedFlagError

AGES = (2023, 2024, 2025, 2026)
KNOWN = {age: parse_help(Path(__file__).with_name("help").joinpath(f"{age}.txt").read_text("utf-8")) for age in AGES}


def line(age: int, *extra: str, **changes: object) -> CommandLine:
    values: dict[str, object] = {"ctx_size": 2048, "threads": 2, "cache_ram": 100, "extra_args": extra}
    return command_line(EngineOptions(**values | changes), KNOWN[age], model="m.gguf")  # type: ignore[arg-type]


def value_of(arguments: tuple[str, ...], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_help_of_each_age_is_read() -> None:
    for age in AGES:
        flags = KNOWN[age].flags
        assert flags["--threads"] is flags["-t"]
        assert flags["--host"].arity == flags["--port"].arity == flags["--parallel"].arity == 1, age
        assert flags["--cont-batching"].arity == 0, age
    assert len(KNOWN[2026].flags) == 412
    assert KNOWN[2026].flags["--threads"].env == "LLAMA_ARG_THREADS"
    assert KNOWN[2026].flags["--control-vector-layer-range"].arity == 2
    assert KNOWN[2026].flags["--override-tensor"].arity == 1
    assert KNOWN[2024].flags["--pooling"].hint == "{none,mean,cls}"
    assert KNOWN[2023].flags["--tensor-split"] is KNOWN[2023].flags["-ts"]


def test_removed_flags_do_not_count_as_known() -> None:
    assert not KNOWN[2026].has("--draft-max")
    assert KNOWN[2025].has("--draft-max")
    assert "--draft-max" not in KNOWN[2026].names


@pytest.mark.parametrize("age", AGES)
def test_every_build_gets_slots_context_and_address(age: int) -> None:
    arguments = line(age, parallel=3, port=1234).arguments
    assert value_of(arguments, "--parallel") == "3"
    assert value_of(arguments, "--ctx-size") == str(3 * 2048)
    assert value_of(arguments, "--host") == "127.0.0.1"
    assert value_of(arguments, "--port") == "1234"
    assert value_of(arguments, "--model") == "m.gguf"
    assert value_of(arguments, "--threads") == "2"
    assert value_of(arguments, "--timeout") == "300"
    assert "--cont-batching" in arguments


def test_current_build_gets_all_defaults_without_a_warning() -> None:
    made = line(2026)
    assert made.warnings == ()
    assert {"--metrics", "--slots", "--log-jsonl", "--no-ui", "--no-kv-unified"} <= set(made.arguments)
    assert value_of(made.arguments, "--cache-ram") == "100"
    assert value_of(made.arguments, "--device") == "none"
    assert value_of(made.arguments, "--gpu-layers") == "0"
    assert value_of(made.arguments, "--threads-http") == "8"


def test_the_similarity_of_slots_is_told_where_it_is_set() -> None:
    assert "--slot-prompt-similarity" not in line(2026).arguments
    assert value_of(line(2026, slot_prompt_similarity=0.75).arguments, "--slot-prompt-similarity") == "0.75"
    with pytest.raises(UnsupportedFlagError, match="slot_prompt_similarity"):
        line(2026, "-sps", "0.5")


def test_what_an_old_build_lacks_is_dropped_with_a_warning() -> None:
    made = line(2023)
    assert not {"--metrics", "--slots", "--cache-ram", "--threads-http"} & set(made.arguments)
    for option in ("metrics", "slots", "cache_ram", "threads_http"):
        assert any(option in warning for warning in made.warnings), option


def test_each_slot_has_an_http_thread_and_there_is_a_margin() -> None:
    assert http_threads(EngineOptions()) == 8
    assert http_threads(EngineOptions(parallel=6)) == 10
    assert http_threads(EngineOptions(parallel=2, threads_http=16)) == 16


@pytest.mark.parametrize(
    ("age", "given_flags", "expected"),
    [
        (2026, ["--log-format", "json"], ["--log-jsonl"]),
        (2026, ["--mlock"], ["--load-mode", "mlock"]),
        (2026, ["--no-mmap"], ["--load-mode", "none"]),
        (2026, ["--mlock", "--no-mmap"], ["--load-mode", "mlock"]),
        (2026, ["--no-mmap", "--mlock"], ["--load-mode", "mlock"]),
        (2026, ["--draft-max", "8"], ["--spec-draft-n-max", "8"]),
        (2026, ["--flash-attn"], ["--flash-attn", "on"]),
        (2026, ["-fa", "off"], ["-fa", "off"]),
        (2024, ["-fa", "on"], ["-fa"]),
        (2024, ["--log-jsonl"], ["--log-format", "json"]),
        (2024, ["--load-mode", "mlock"], ["--mlock"]),
        (2025, ["--load-mode", "none"], ["--no-mmap"]),
        (2025, ["--no-ui"], ["--no-webui"]),
        (2025, ["--spec-draft-n-max", "8"], ["--draft-max", "8"]),
        (2026, ["--predict=32"], ["--predict", "32"]),
        (2026, ["--batch_size", "512"], ["--batch-size", "512"]),
        (2026, ["--control-vector-layer-range", "1", "2"], ["--control-vector-layer-range", "1", "2"]),
        (2026, ["--predict", "-1", "--jinja"], ["--predict", "-1", "--jinja"]),
    ],
)
def test_flags_are_translated_to_what_the_build_calls_them(
    age: int, given_flags: list[str], expected: list[str]
) -> None:
    arguments = line(age, *given_flags).arguments
    start = arguments.index(expected[0])
    assert list(arguments[start : start + len(expected)]) == expected
    assert arguments.count(expected[0]) == 1


def test_translation_is_told() -> None:
    assert "--mlock translated to --load-mode mlock" in line(2026, "--mlock").warnings
    assert any(warning.startswith("--log-jsonl dropped") for warning in line(2025, "--log-jsonl").warnings)


@pytest.mark.parametrize(
    ("age", "extra", "said"),
    [
        (2026, ["--frobnicate"], "does not know --frobnicate"),
        (2026, ["--thread-http", "3"], "did you mean"),
        (2026, ["--spec-ngram-size-n", "3"], "the argument has been removed"),
        (2026, ["--predict"], "needs 1 value"),
        (2026, ["stray"], "where a flag is expected"),
        (2026, ["--api-key", "x"], "set the option api_key"),
        (2026, ["-c", "4096"], "ctx_size (per slot)"),
        (2026, ["--version"], "would not serve"),
        (2025, ["--load-mode", "dio"], "does not know --load-mode"),
    ],
)
def test_what_cannot_be_expressed_is_refused(age: int, extra: list[str], said: str) -> None:
    with pytest.raises(UnsupportedFlagError) as caught:
        line(age, *extra)
    assert said in str(caught.value)


def test_what_somebody_asked_for_is_refused_where_the_build_lacks_it() -> None:
    with pytest.raises(UnsupportedFlagError, match="slot-save-path"):
        line(2023, slot_save_path="/s")
    with pytest.raises(UnsupportedFlagError, match="without GPU support"):
        line(2024, gpu=True)


def test_gpu_is_on_by_request_only() -> None:
    assert value_of(line(2026, gpu=True).arguments, "--gpu-layers") == "auto"
    assert "--device" not in line(2026, gpu=True).arguments
    assert value_of(line(2025, gpu=True).arguments, "--gpu-layers") == "999"
    assert value_of(line(2026, gpu=True, gpu_layers=7).arguments, "--gpu-layers") == "7"


def test_slots_off_in_the_words_of_each_age() -> None:
    assert "--no-slots" in line(2026, slots=False).arguments
    assert "--slots-endpoint-disable" in line(2024, slots=False).arguments
    assert "--slots" not in line(2026, slots=False).arguments


def test_secrets_are_hidden() -> None:
    assert hidden(["a", "--k", "xs3cretx"], ["s3cret", ""]) == ("a", "--k", "x***x")


@given(
    age=st.sampled_from(AGES),
    parallel=st.integers(1, 64),
    metrics=st.booleans(),
    slots=st.booleans(),
    gpu=st.booleans(),
    ping=st.none() | st.integers(1, 99),
    alias=st.none() | st.just("x"),
)
def test_no_build_ever_gets_a_flag_that_it_does_not_know(
    age: int, parallel: int, metrics: bool, slots: bool, gpu: bool, ping: int | None, alias: str | None
) -> None:
    gpu = gpu and age != 2024  # recorded from a build without GPU support
    made = line(
        age, parallel=parallel, metrics=metrics, slots=slots, gpu=gpu, sse_ping_interval=ping, alias=alias
    ).arguments
    rest = list(made)
    while rest:
        flag = rest.pop(0)
        assert KNOWN[age].has(flag), flag
        del rest[: KNOWN[age].flags[flag].arity]


@given(st.text(max_size=2000))
def test_any_text_can_be_read_as_help(text: str) -> None:
    assert all(name.startswith("-") for name in parse_help(text).names)


# -- the embedded engine's table ----------------------------------------------------------------------------


def test_embedded_translates_flags_to_attributes() -> None:
    settings, warnings = translate(["--mlock", "-b", "512", "-fa", "--temp=0.5", "--log-format", "json", "--no-mmap"])
    assert settings == {
        "load_mode": "LLAMA_LOAD_MODE_NONE",
        "n_batch": 512,
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "sampling.temp": 0.5,
    }
    assert len(warnings) == 1
    assert warnings[0].startswith("--log-format dropped")


@pytest.mark.parametrize(
    ("extra", "error", "said"),
    [
        (["--rpc", "x"], UnsupportedFlagError, "cannot express '--rpc'"),
        (["--batch-siz", "1"], UnsupportedFlagError, "did you mean --batch-size"),
        (["--port", "1"], UnsupportedFlagError, "set the option port"),
        (["--batch-size", "many"], SettingError, "'many'"),
        (["--load-mode", "fast"], SettingError, "allowed are auto"),
        (["--batch-size"], SettingError, "needs a value"),
    ],
)
def test_embedded_refuses_what_it_cannot_express(extra: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        translate(extra)
    assert said in str(caught.value)
