"""From the last log lines and the exit code to one error that says what happened and what to do.

llama-server ends with exit code 1 whatever went wrong, and the embedded engine raises one RuntimeError for
everything: only the log tells the failures apart.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

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

SHOWN_LINES = 12

# in order: what is found first wins. Memory comes before the model, because «failed to load model» follows both.
_RULES: tuple[tuple[type[EngineError], re.Pattern[str], str], ...] = (
    (
        UnsupportedFlagError,
        re.compile(r"(?:invalid|unknown) argument: ?(?P<what>\S+)|error while handling argument \"(?P<flag>[^\"]+)\""),
        "the server refused the flag {what}: remove it, or correct its value (see `llama-server --help`)",
    ),
    (
        UnsupportedFlagError,
        re.compile(r"llamastream: the embedded engine (?P<what>.+)"),
        "the embedded engine {what}",
    ),
    (
        EngineMissingError,
        re.compile(r"llamastream: cannot import xllamacpp: (?P<what>.*)"),
        (
            "the embedded engine needs the package xllamacpp, which cannot be imported ({what}): "
            "pip install 'llamastream[server]', or give a llama-server executable (binary, LLAMA_SERVER_BIN, PATH)"
        ),
    ),
    (
        EngineMissingError,
        re.compile(r"(?P<what>[\w.+-]+\.(?:so|dylib)[\w.]*): cannot open shared object|Library not loaded: (?P<lib>\S+)"
                   r"|version `(?P<glibc>GLIBC\w*_[\d.]+)' not found"),
        "the llama-server executable cannot run here, {what} is missing: install it, or use another build",
    ),
    (
        PortInUseError,
        re.compile(r"couldn't bind[^\n]*|[Aa]ddress already in use|bind\(\) failed"),
        (
            "cannot listen on {address}: it is taken by another process, no address of this machine, or not permitted; "
            "choose another port (0: any free one)"
        ),
    ),
    (
        ModelDownloadError,
        re.compile(r"HTTPS is not supported|DLLAMA_OPENSSL|failed to download|failed to fetch model metadata"
                   r"|get_repo_files: .*(?:failed|error)|error: (?:failed|unable) to .*(?:hugging|download)"
                   r"|not built with CURL|curl_easy_perform\(\) failed", re.IGNORECASE),
        (
            "the model {model} could not be downloaded: check the name, the network and HF_TOKEN, or download it "
            "yourself and give its path as model"
        ),
    ),
    (
        EngineMemoryError,
        re.compile(r"out of memory|bad_alloc|[Cc]annot allocate memory|failed to allocate|unable to allocate"
                   r"|OutOfDeviceMemory|cudaMalloc failed|insufficient memory"),
        (
            "not enough memory for the model {model} and its context: use a smaller model or quantisation, a smaller "
            "ctx_size, or fewer slots (parallel)"
        ),
    ),
    (
        ModelFileError,
        re.compile(r"failed to open GGUF file[^\n]*"),
        "the model file {model} cannot be opened: check the path and its permissions",
    ),
    (
        ModelFileError,
        re.compile(r"invalid magic|failed to read magic|bad magic"),
        "{model} is no GGUF model file: give a file in GGUF format",
    ),
    (
        ModelFileError,
        re.compile(r"data is not within the file bounds|failed to read key-value pairs|failed to read tensor"
                   r"|corrupted or incomplete|unexpectedly reached end of file"),
        "the model file {model} is damaged or incomplete: download it again",
    ),
    (
        ModelFileError,
        re.compile(r"unknown (?:model )?architecture: '(?P<what>[^']*)'"),
        "this engine does not know the architecture {what} of the model {model}: use a newer llama-server",
    ),
    (
        ModelFileError,
        re.compile(r"(?:error loading model|failed to load model)(?:[:,] ?(?P<what>.*))?"),
        "the model {model} cannot be loaded: the log below says why",
    ),
    (
        EngineCrashedError,
        re.compile(r"failed to initialize the context: (?P<what>.*)|failed to create context(?P<plain>) with model"),
        "the server could not make a context for {model} ({what}): the log below says why",
    ),
)  # fmt: skip

_SIGNALS = {
    signal.SIGILL: "it uses CPU instructions that this machine lacks: use a build for this CPU",
    signal.SIGSEGV: "a fault in the server or its GPU driver: try another build, or without gpu",
    signal.SIGBUS: "a memory-mapped file became shorter or unreadable: check the model file and its disk",
    signal.SIGABRT: "the server gave up on an internal error, which its log may name",
}


def classify(lines: Sequence[str], exit_code: int | None, *, model: str, address: str) -> EngineError:
    """Name the failure of a server that did not start.

    Args:
        lines: its log as text, oldest first.
        exit_code: its exit code, negative for a signal, None if it still runs.
        model: what was to be loaded, for the message. address: where it was to listen, for the message.
    """
    shown = tuple(lines[-SHOWN_LINES:])
    text = "\n".join(lines)
    for kind, pattern, message in _RULES:
        if match := pattern.search(text):
            found = next((value for value in match.groupdict().values() if value), "?")
            said = message.format(what=found.strip(), model=model, address=address)
            return kind(said, log_lines=_evidence(lines, match[0]) or shown, exit_code=exit_code)
    if exit_code == -signal.SIGKILL:
        return EngineMemoryError(
            f"the server was killed (SIGKILL) while it loaded {model}, as the system does when memory runs out: use a "
            "smaller model or quantisation, a smaller ctx_size, or fewer slots (parallel)",
            log_lines=shown,
            exit_code=exit_code,
        )
    return EngineCrashedError(f"the server {describe_exit(exit_code)}", log_lines=shown, exit_code=exit_code)


def describe_exit(exit_code: int | None) -> str:
    """An exit code in words, with the likely cause where the signal suggests one."""
    if exit_code is None:
        return "is still running, but not usable"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        number = signal.Signals(-exit_code)
    except ValueError:
        return f"was ended by signal {-exit_code}"
    cause = _SIGNALS.get(number)
    return f"was ended by {number.name}" + (f": {cause}" if cause else "")


def _evidence(lines: Sequence[str], found: str) -> tuple[str, ...]:
    """The last lines, and the one that names the cause in any case."""
    last = list(lines[-SHOWN_LINES:])
    first_line = found.splitlines()[0] if found else ""
    if not any(first_line in line for line in last):
        last = [line for line in lines if first_line in line][:1] + last[1:]
    return tuple(last)
