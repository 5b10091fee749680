"""The parts of a search that need no server: what is tried, how it is judged, what is written."""

from __future__ import annotations

import math
import random
import tomllib
from pathlib import Path

import pytest

from llamastream.bench.machine import describe_machine
from llamastream.bench.tune.models import largest_first, wanted
from llamastream.bench.tune.page import conclusion, tune_page
from llamastream.bench.tune.result import Finalist, ModelResult, Tried, TuneResult
from llamastream.bench.tune.settings import TuneSettings
from llamastream.bench.tune.space import (
    DIMENSIONS,
    Machine,
    base_of,
    defaults_of,
    hunches_of,
    misfit,
    options_of,
    sensible,
    space_of,
    without_tuned,
)
from llamastream.bench.tune.trial import Figures
from llamastream.bench.tune.verdict import Gain, gain_of, signed_rank, student_quantile
from llamastream.bench.tune.writing import settings_text, write_settings
from llamastream.engine import EngineOptions
from llamastream.engine.demo import demo_model_path
from llamastream.errors import BenchError, ModelFileError, SettingError
from llamastream.fleet.configuration import configure
from llamastream.settings import load

MODEL = str(demo_model_path())
MACHINE = Machine(physical=8, usable=4, logical=8)


# -- the verdict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.975, 10, 2.2281), (0.9875, 5, 3.1634), (0.95, 30, 1.6973)],
)
def test_quantiles_of_students_distribution_are_those_of_the_tables(share: float, freedom: int, value: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize(("count", "place"), [(5, None), (6, 0), (8, 3), (10, 8), (20, 52), (30, 137)])
def test_places_of_the_signed_rank_interval_are_those_of_the_tables(count: int, place: int | None) -> None:
    assert signed_rank(count, 0.95) == place


@pytest.mark.parametrize("pairs", [4, 8, 20])
def test_intervals_hold_the_true_gain_as_often_as_they_say(pairs: int) -> None:
    chance = random.Random(pairs)
    held, alarms = 0, 0
    for _ in range(400):
        before = [math.exp(chance.gauss(0, 0.05)) for _ in range(pairs)]
        after = [1.1 * math.exp(chance.gauss(0, 0.05)) for _ in range(pairs)]
        gain = gain_of(before, after)
        assert gain.low is not None
        assert gain.high is not None
        held += gain.low <= 0.1 <= gain.high
        alarms += gain_of(before, [value / 1.1 for value in after]).clear
    assert held >= 0.93 * 400
    assert alarms <= 0.05 * 400  # of 2.5 % that are to be expected


def test_one_disturbed_pair_does_not_hide_a_gain() -> None:
    before = [100.0] * 20
    after = [110.0 + number / 10 for number in range(19)] + [30.0]
    gain = gain_of(before, after, at_once=2)
    assert gain.clear
    assert gain.value == pytest.approx(0.108, abs=0.01)


def test_a_gain_in_words_stays_short() -> None:
    assert str(Gain(0.012, -0.031, 0.058, 4)) == "+1.2 % (-3.1 % to +5.8 %)"
    assert str(Gain(-0.704, -1.0, 2184562610.5, 2)) == "-70.4 % (-100.0 % to > +1000 %)"
    assert str(Gain(0.5, None, None, 1)) == "+50.0 %"


def test_of_one_pair_nothing_is_clear() -> None:
    gain = gain_of([1.0], [2.0])
    assert gain.value == pytest.approx(1.0)
    assert gain.low is None
    assert not gain.clear


# -- what is tried ------------------------------------------------------------------------------------------


def test_the_defaults_are_what_llama_server_does_with_a_model_alone() -> None:
    base = base_of(EngineOptions(ctx_size=512, extra_args=("-fa", "on", "--seed", "3")), MODEL)
    options = defaults_of(base, MACHINE)
    assert (options.threads, options.threads_batch, options.parallel) == (8, 8, 4)
    assert options.extra_args == ("--seed", "3", "--kv-unified")
    old = defaults_of(base, Machine(physical=8, usable=8, logical=8, auto_slots=1))
    assert (old.parallel, old.extra_args) == (1, ("--seed", "3"))


def test_flags_that_are_looked_for_are_taken_out_of_the_settings() -> None:
    given = ("--flash-attn", "-b", "512", "--keep", "-1", "--ubatch_size=64", "--mlock", "-ctk", "q8_0", "--jinja")
    assert without_tuned(given) == ("--keep", "-1", "--jinja")


def test_slots_are_looked_for_only_where_they_can_be_told_apart() -> None:
    for goal, slots in (("latency", (3,)), ("throughput", (4, 1, 2, 8)), ("balanced", (4, 1, 2, 8))):
        space = space_of(TuneSettings(goal=goal), base_of(EngineOptions(parallel=3), MODEL), MACHINE)  # type: ignore[arg-type]  # of the table above
        assert tuple(dimension.name for dimension in space) == DIMENSIONS
        assert space[2].values == slots
        assert space[0].values == (4, 8, 2, 3)
        assert all(len(set(dimension.values)) == len(dimension.values) for dimension in space)


def test_what_usually_pays_is_named_first() -> None:
    base = base_of(EngineOptions(parallel=3), MODEL)
    for goal, slots in (("latency", 3), ("throughput", 8), ("balanced", 8)):
        settings = TuneSettings(goal=goal)  # type: ignore[arg-type]  # of the table above
        space = space_of(settings, base, MACHINE)
        named = hunches_of(settings, space)
        assert named
        assert {candidate[2] for candidate in named} == {slots}
        assert all(value in dimension.values for each in named for value, dimension in zip(each, space, strict=True))


def test_a_candidate_becomes_flags_that_a_build_takes() -> None:
    base = base_of(EngineOptions(), MODEL)
    options = options_of((2, 4, 8, "512/128", "on", "q8_0", "none"), base)
    assert (options.threads, options.threads_batch, options.parallel) == (2, 4, 8)
    flags = "--batch-size 512 --ubatch-size 128 --flash-attn on --cache-type-k q8_0 --cache-type-v q8_0"
    assert options.extra_args == (*flags.split(), "--load-mode", "none")
    assert options_of((2, 2, 4, "2048/512", "default", "default", "default"), base).extra_args == ()
    assert not sensible((2, 4, 8, "512/128", "off", "q8_0", "none"))
    assert sensible((2, 4, 8, "512/128", "off", "default", "none"))


def test_what_cannot_fit_is_not_even_started() -> None:
    assert misfit(EngineOptions(model=MODEL, ctx_size=512)) == ""
    assert "GiB" in misfit(EngineOptions(model=MODEL, ctx_size=1 << 30))


def test_a_wrong_cache_type_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingError, match="cache_types = 'f17' from --cache-types is not allowed; allowed: f32, f16"):
        load(TuneSettings, given={"cache_types": "f17"}, environ={})
    with pytest.raises(SettingError, match="embedding or reranking is on"):
        base_of(EngineOptions(embedding=True), MODEL)


# -- what is written ----------------------------------------------------------------------------------------


def figures(stream: float) -> Figures:
    return Figures(score=stream, alone=stream, together=None, stream=stream, first_token=0.1, start=1.0, took=1.0)


def result_of(*streams: float, wished: float | None = None, path: str = "/models/m{}.gguf") -> TuneResult:
    """The larger models come first."""
    settings = TuneSettings(min_tokens_per_second=wished)
    models = tuple(
        ModelResult(
            model=path.format(number), size=1000 - number, engine="embedded", ctx_size=512, prompt_tokens=16,
            output_tokens=8, defaults=figures(stream / 1.1), best=figures(stream),
            chosen={"model": path.format(number), "threads": 2, "gpu": True, "extra_args": ("--flash-attn", "on")},
            chosen_words="threads=2", gain=Gain(0.1, 0.05, 0.15, 8),
            tried=(Tried("threads=2", "search", 0, 1, 1, figures(stream)), Tried("x", "search", 0, 1, 2, reason="<b>")),
            finalists=(Finalist("threads=2", stream, Gain(0.1, 0.05, 0.15, 8)),), seconds=10.0,
        )
        for number, stream in enumerate(streams)
    )  # fmt: skip
    return TuneResult(
        created="2026-01-01T00:00:00+00:00", machine=describe_machine(), settings={"goal": "latency", "at_once": 8,
        "min_tokens_per_second": wished}, models=models, wanted=wanted(models, settings),
    )  # fmt: skip


def test_the_largest_model_that_is_fast_enough_is_chosen() -> None:
    assert result_of(5, 12, 30, wished=10).wanted == "/models/m1.gguf"
    none = result_of(5, 6, wished=10)
    assert none.wanted is None
    assert "no model gives a stream 10 tokens/s; the fastest, with 6.00: /models/m1.gguf" in conclusion(none)
    assert result_of(5).wanted == "/models/m0.gguf"
    assert result_of(5, 6).wanted is None


def test_models_are_tried_by_size(tmp_path: Path) -> None:
    larger = tmp_path / "larger.gguf"
    larger.write_bytes(Path(MODEL).read_bytes() + bytes(64))
    assert largest_first([MODEL, str(larger), MODEL]) == [str(larger), MODEL]
    with pytest.raises(ModelFileError, match="does not exist"):
        largest_first([MODEL, str(tmp_path / "none.gguf")])


def test_what_is_written_is_read_by_serve_whatever_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.toml"
    result = result_of(5, path='/models/"ü\\ #{}.gguf')
    write_settings(result, path)
    text = path.read_text(encoding="utf-8")
    assert tomllib.loads(text)["serve"]["gpu"] is True
    assert "# +10.0 % (+5.0 % to +15.0 %) over llama-server's defaults: threads=2" in text
    pool = configure({}, {}, environ={"LLAMASTREAM_CONFIG": str(path)}).pools[0]
    assert (pool.options.model, pool.options.threads) == ('/models/"ü\\ #0.gguf', 2)
    assert pool.options.extra_args == ("--flash-attn", "on")


def test_a_file_that_is_there_is_overwritten_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text("mine")
    with pytest.raises(SettingError, match="exists: give another name, or --force"):
        write_settings(result_of(5), path)
    assert path.read_text() == "mine"
    write_settings(result_of(5), path, force=True)
    assert "[serve]" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(BenchError, match="no model was chosen"):
        settings_text(result_of(5, 6))


def test_the_page_shows_all_trials_and_quotes_what_failed() -> None:
    page = tune_page(result_of(5, 12, wished=10))
    assert page.count('<svg class="chart"') == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "the largest that gives a stream 10 tokens/s, with 12.0: /models/m1.gguf" in page
