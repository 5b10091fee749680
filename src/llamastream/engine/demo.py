"""The bundled demo model and the questions that it can answer."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llamastream.errors import ModelFileError

DATA = Path(__file__).with_name("data")
DEMO_ALIAS = "demo"


class DemoQuestion(msgspec.Struct, frozen=True):
    """A question that the demo model answers with exactly `answer` at temperature 0."""

    question: str
    answer: str
    language: str = "en"
    topic: str = ""


class _DemoFile(msgspec.Struct):
    answers: list[DemoQuestion]


def demo_model_path() -> Path:
    """Where the demo model is.

    Raises:
        ModelFileError: the installation lacks it.
    """
    path = DATA / "demo.gguf"
    if not path.is_file():
        raise ModelFileError(
            f"the demo model is missing from this installation ({path}): reinstall llamastream, or give a model of "
            "your own (model, hf)"
        )
    return path


def demo_questions() -> list[DemoQuestion]:
    """The demo model's questions with their exact answers.

    Raises:
        ModelFileError: the installation lacks the file, or it is damaged.
    """
    path = DATA / "demo.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_DemoFile).answers
    except (OSError, msgspec.DecodeError) as error:
        raise ModelFileError(f"cannot read the demo model's questions from {path}: {error}") from None
