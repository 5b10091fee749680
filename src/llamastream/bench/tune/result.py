"""What a search found: the document that is shown, written and made a page of."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from llamastream.bench.machine import Machine
from llamastream.bench.tune.trial import Figures
from llamastream.bench.tune.verdict import Gain

DEFAULTS = "llama-server's defaults"


def figure_text(value: float) -> str:
    """A figure for people, with three digits that count."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}"


class Tried(Struct, frozen=True):
    """One trial.

    Attributes:
        settings: what of them is not default, in words. part: `defaults`, `search` or `final`. round: from 0.
        at: seconds from the beginning of the search.
        figures: None: it failed. reason: why.
    """

    settings: str
    part: str
    round: int
    effort: int
    at: float
    figures: Figures | None = None
    reason: str = ""


class Finalist(Struct, frozen=True):
    """One that was measured in turn with the defaults. `gain`: over them, None where there was no time for that."""

    settings: str
    score: float
    gain: Gain | None


class ModelResult(Struct, frozen=True):
    """What was found for one model.

    Attributes:
        model: its file. size: of it, in bytes. engine: which kind of it, and its build.
        prompt_tokens, output_tokens: of the requests that were sent; fewer than asked for where these took too long.
        defaults, best: mean figures of the defaults and of the chosen settings: of the final where there was one. best
            is None where the defaults are chosen.
        chosen: the settings as fields of `EngineOptions`. gain: over the defaults; None: these are chosen.
        tried: all trials. finalists: those of the final, the best first.
        interrupted: the search was broken off.
    """

    model: str
    size: int
    engine: str
    ctx_size: int
    prompt_tokens: int
    output_tokens: int
    defaults: Figures
    best: Figures | None
    chosen: dict[str, Any]
    chosen_words: str
    gain: Gain | None
    tried: tuple[Tried, ...]
    finalists: tuple[Finalist, ...]
    seconds: float
    interrupted: bool = False

    @property
    def figures(self) -> Figures:
        """Of what was chosen."""
        return self.best or self.defaults

    @property
    def verdict(self) -> str:
        """In a line."""
        if self.gain is not None:
            return f"{self.gain} over llama-server's defaults: {self.chosen_words}"
        if self.finalists and (first := self.finalists[0]).gain is None:
            return (
                "there was no time to compare anything with llama-server's defaults, so these are kept; the best so "
                f"far: {first.settings}"
            )
        if not self.finalists:
            return "nothing but llama-server's defaults could be measured: they are kept"
        first = self.finalists[0]
        return (
            f"nothing is clearly better than llama-server's defaults, so these are kept; the nearest: {first.gain}, "
            f"{first.settings}"
        )


class TuneResult(Struct, frozen=True):
    """All of it. `wanted`: the model that was chosen; None: no model is fast enough. `skipped`: smaller models that
    need not be measured, since a larger one is fast enough."""

    created: str
    machine: Machine
    settings: dict[str, Any]
    models: tuple[ModelResult, ...]
    wanted: str | None
    skipped: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def chosen(self) -> ModelResult | None:
        """The result of the model that was chosen."""
        return next((result for result in self.models if result.model == self.wanted), None)
