"""Start-up failures told apart by their log; the lines are recorded from real builds."""

from __future__ import annotations

import signal

import pytest

from llamastream.engine.failures import classify, describe_exit
from llamastream.errors import (
    EngineCrashedError,
    EngineError,
    EngineMemoryError,
    EngineMissingError,
    ModelDownloadError,
    ModelFileError,
    PortInUseError,
    UnsupportedFlagError,
)


@pytest.mark.parametrize(
    ("lines", "exit_code", "error", "said"),
    [
        (["error: invalid argument: --frobnicate"], 1, UnsupportedFlagError, "--frobnicate"),
        (["error: unknown argument: --old"], 1, UnsupportedFlagError, "--old"),
        (['error while handling argument "-np": stoi', "", "usage:"], 1, UnsupportedFlagError, "-np"),
        (
            ["srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 28999", "exiting"],
            1, PortInUseError, "cannot listen on ADDRESS",
        ),
        (["couldn't bind to server socket: hostname=127.0.0.1 port=8080"], 1, PortInUseError, "choose another port"),
        (
            ["gguf_init_from_file: failed to open GGUF file 'm' (No such file or directory)", "failed to load model"],
            1, ModelFileError, "cannot be opened",
        ),
        (["invalid magic characters: 'not ', expected 'GGUF'", "failed to load model"], 1, ModelFileError, "no GGUF"),
        (
            ["error loading model: tensor 'output.weight' data is not within the file bounds, model is corrupted", "x"],
            1, ModelFileError, "damaged or incomplete",
        ),
        (
            ["error loading model: error loading model architecture: unknown model architecture: 'zeta'"],
            1, ModelFileError, "architecture zeta",
        ),
        (["llama_model_load: error loading model: weird"], 1, ModelFileError, "the log below says why"),
        (
            ["ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99", "failed to load model"],
            1, EngineMemoryError, "not enough memory",
        ),
        (["terminate called", "what():  std::bad_alloc"], -6, EngineMemoryError, "not enough memory"),
        (
            ["failed to initialize the context: V cache quantization requires flash_attn", "failed to create context"],
            1, EngineCrashedError, "V cache quantization requires flash_attn",
        ),
        (["ggml_cuda: cudaMalloc failed: out of memory"], 1, EngineMemoryError, "smaller ctx_size"),
        (["loading model"], -9, EngineMemoryError, "SIGKILL"),
        (["HTTPS is not supported. Please rebuild with:"], 1, ModelDownloadError, "could not be downloaded"),
        (
            ["error while loading shared libraries: libcuda.so.1: cannot open shared object file: No such file"],
            127, EngineMissingError, "libcuda.so.1",
        ),
        (["llamastream: cannot import xllamacpp: No module named 'xllamacpp'"], 1, EngineMissingError, "pip install"),
        (["loading model"], -4, EngineCrashedError, "CPU instructions"),
        (["loading model"], -11, EngineCrashedError, "SIGSEGV"),
        (["something new"], 1, EngineCrashedError, "exit code 1"),
        ([], None, EngineCrashedError, "still running"),
    ],
)  # fmt: skip
def test_each_failure_has_its_error(
    lines: list[str], exit_code: int | None, error: type[EngineError], said: str
) -> None:
    found = classify(lines, exit_code, model="m.gguf", address="ADDRESS")
    assert type(found) is error
    assert said in found.message
    assert found.exit_code == exit_code


def test_the_line_that_names_the_cause_is_shown_even_if_it_is_not_among_the_last() -> None:
    lines = ["std::bad_alloc happened here", *(f"noise {n}" for n in range(100))]
    found = classify(lines, 1, model="m", address="a")
    assert found.log_lines[0] == lines[0]
    assert found.log_lines[-1] == "noise 99"
    assert len(found.log_lines) == 12
    assert "noise 99" in str(found)


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert "SIGTERM" in describe_exit(-signal.SIGTERM)
    assert describe_exit(-1000) == "was ended by signal 1000"
