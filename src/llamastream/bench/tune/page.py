"""What a search found as one HTML page: self-contained, light and dark, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from llamastream.bench.page import document, figure, table
from llamastream.bench.report import count
from llamastream.bench.svg import Axis, Point, Series, chart
from llamastream.bench.tune.result import DEFAULTS, ModelResult, Tried, TuneResult, figure_text
from llamastream.bench.tune.writing import settings_text


def tune_page(result: TuneResult) -> str:
    """The whole page."""
    return document(
        f"llamastream tune, {result.created}", f"llamastream tune: {result.settings['goal']}", _parts(result)
    )


def _parts(result: TuneResult) -> Iterator[str]:
    if result.interrupted:
        yield '<p class="bad">The search was broken off; this is what there was of it.</p>'
    if len(result.models) > 1 or result.settings["min_tokens_per_second"] is not None:
        yield "<h2>Models</h2>"
        yield f"<p>{escape(conclusion(result))}</p>"
        titles = ("model", "GiB", "tokens/s of a stream", "first token, ms", "gain over the defaults")
        yield from table(titles, (_model_row(model) for model in result.models))
    for model in result.models:
        yield from _model(model)
    if result.chosen is not None:
        yield f"<h2>Settings</h2><pre>{escape(settings_text(result))}</pre>"
    machine = result.machine
    facts = {
        "machine": f"{machine.cpu}, {machine.usable_cores} usable of {machine.cores} cores, "
        f"{machine.memory / 2**30:.1f} GiB, {machine.system}",
        "measured by": f"llamastream {machine.llamastream}, {machine.python}, {result.created}",
        "asked": ", ".join(f"{name}={value}" for name, value in result.settings.items() if value is not None),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    yield f"<h2>What it depends on</h2><dl>{rows}</dl>"


def conclusion(result: TuneResult) -> str:
    """Which model, in a line; "" where there was nothing to choose."""
    wanted = result.settings["min_tokens_per_second"]
    if wanted is None:
        return ""
    if result.chosen is None:
        fastest = max(result.models, key=lambda model: model.figures.stream)
        return (
            f"no model gives a stream {wanted:,.10g} tokens/s; the fastest, with "
            f"{figure_text(fastest.figures.stream)}: {fastest.model}"
        )
    rest = f" ({len(result.skipped)} smaller not measured)" if result.skipped else ""
    return (
        f"the largest that gives a stream {wanted:,.10g} tokens/s, with {figure_text(result.chosen.figures.stream)}: "
        f"{result.chosen.model}{rest}"
    )


def _model_row(model: ModelResult) -> tuple[str, ...]:
    figures = model.figures
    return (
        model.model, f"{model.size / 2**30:.2f}", figure_text(figures.stream), figure_text(figures.first_token * 1e3),
        str(model.gain or "none: the defaults"),
    )  # fmt: skip


def _model(model: ModelResult) -> Iterator[str]:
    verdict = model.verdict[:1].upper() + model.verdict[1:]
    yield f"<h2>{escape(model.model)}</h2><p><strong>{escape(verdict)}</strong></p>"
    yield (
        f"<p>{escape(model.engine)}; {model.prompt_tokens} prompt tokens, {model.output_tokens} answered; "
        f"{model.ctx_size} tokens of context for each slot; "
        f"{count(len(model.tried), 'trial')} in {model.seconds:.0f} s.</p>"
    )
    drawing = chart("Score of each trial", Axis("seconds"), Axis("tokens per second"), list(_series(model.tried)))
    yield f'<div class="charts">{figure("Score of each trial", drawing)}</div>'
    if any(finalist.gain for finalist in model.finalists):
        yield "<h3>The final</h3><p>Measured in turn with the defaults; in brackets the 95 % confidence interval.</p>"
        rows = [(DEFAULTS, figure_text(model.defaults.score), "–", "")]
        rows += [
            (one.settings, figure_text(one.score), str(one.gain), str(one.gain.pairs))
            for one in model.finalists
            if one.gain
        ]
        yield from table(("settings", "score, tokens/s", "gain", "pairs"), rows)
    yield "<h3>All trials</h3><p>Effort: how much was asked. Stream: tokens/s of one alone, or beside the others.</p>"
    titles = ["settings", "part", "effort", "score, tokens/s", "stream", "first token, ms"]
    if any(tried.reason for tried in model.tried):
        titles.append("failed")
    yield from table(titles, (trial_row(tried)[: len(titles)] for tried in model.tried), words="failed")


def _series(tried: Sequence[Tried]) -> Iterator[Series]:
    """The defaults, wherever they were measured, and what else there was of the search and of the final."""
    kinds: dict[str, list[Point]] = {DEFAULTS: [], "search": [], "final": []}
    for one in tried:
        if one.figures:
            kinds[DEFAULTS if one.settings == DEFAULTS else one.part].append(_point(one))
    return (Series(name, tuple(points), "dots") for name, points in kinds.items() if points)


def trial_row(tried: Tried) -> tuple[str, ...]:
    """A trial as text."""
    figures = tried.figures
    shown = ("–", "–", "–")
    if figures is not None:
        shown = (figure_text(figures.score), figure_text(figures.stream), figure_text(figures.first_token * 1e3))
    part = tried.part if tried.part != "search" else f"round {tried.round + 1}"
    return (tried.settings, part, str(tried.effort), *shown, tried.reason)


def _point(tried: Tried) -> Point:
    score = tried.figures.score if tried.figures else 0.0
    return Point(tried.at, score, says=f"{tried.settings}: {figure_text(score)} tokens/s")
