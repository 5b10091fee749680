"""What was found as a settings file, for `serve`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llamastream.bench.report import count
from llamastream.bench.tune.result import ModelResult, TuneResult, figure_text
from llamastream.errors import BenchError, SettingError
from llamastream.files import write_whole


def check_target(path: Path, *, force: bool) -> None:
    """Raises:
    SettingError: the file is there and may not be overwritten, or its directory is not there.
    """
    if not path.absolute().parent.is_dir():
        raise SettingError(f"{path}: the directory {path.absolute().parent} does not exist")
    if path.is_dir():
        raise SettingError(f"{path} is a directory: give the name of a file")
    if path.exists() and not force:
        raise SettingError(f"{path} exists: give another name, or --force to overwrite it")


def write_settings(result: TuneResult, path: Path, *, force: bool = False) -> None:
    """Write the file, in one step.

    Raises:
        SettingError: as `check_target`. BenchError: no model was chosen, or the file cannot be written.
    """
    check_target(path, force=force)
    text = settings_text(result)
    try:
        write_whole(path, text.encode(), overwrite=force)
    except FileExistsError:
        check_target(path, force=force)
        raise
    except (OSError, UnicodeEncodeError) as error:
        raise BenchError(f"{path} cannot be written: {error}") from None


def settings_text(result: TuneResult) -> str:
    """The file's text.

    Raises:
        BenchError: no model was chosen.
    """
    chosen = result.chosen
    if chosen is None:
        raise BenchError("no model was chosen, so there are no settings to write")
    lines = [*(f"# {line}" for line in _remarks(result, chosen)), "", "[serve]"]
    lines += [f"{name} = {_value(value)}" for name, value in chosen.chosen.items() if value is not None]
    return "\n".join(lines) + "\n"


def _remarks(result: TuneResult, chosen: ModelResult) -> Iterator[str]:
    machine = result.machine
    yield f"Found by llamastream tune {machine.llamastream}, {result.created}"
    yield f"goal: {result.settings['goal']}, {count(len(chosen.tried), 'trial')} in {chosen.seconds:.0f} s"
    yield f"on: {machine.cpu}, {machine.usable_cores} usable of {machine.cores} cores, {machine.memory / 2**30:.1f} GiB"
    yield f"engine: {chosen.engine}"
    yield f"requests: {chosen.prompt_tokens} prompt tokens, {chosen.output_tokens} answered; " + (
        "one at a time" if result.settings["goal"] == "latency" else f"{result.settings['at_once']} at once"
    )
    yield chosen.verdict
    known = {"defaults": chosen.defaults, "these": chosen.best}
    for name, figures in known.items():
        if figures is None:
            continue
        yield (
            f"{name}: {figure_text(figures.score)} tokens/s by the goal, {figure_text(figures.stream)} tokens/s of a "
            f"stream, first token after {figure_text(figures.first_token * 1e3)} ms"
        )


def _value(value: object) -> str:
    """TOML. A JSON string of printable text is one of TOML's basic strings."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(each) for each in value)}]"
    return str(value)
