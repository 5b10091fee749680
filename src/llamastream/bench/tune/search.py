"""The search for one model: the defaults, rounds of candidates, and a final in which the best meet the defaults."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec
from msgspec import Struct

from llamastream.bench.halving import Candidate, Dimension, Halving, Plan, Trial, plan_for
from llamastream.bench.statistics import percentile
from llamastream.bench.tune import trial as trials
from llamastream.bench.tune.result import DEFAULTS, Finalist, ModelResult, Tried
from llamastream.bench.tune.settings import TuneSettings
from llamastream.bench.tune.space import (
    AUTO_SLOTS,
    base_of,
    defaults_of,
    described,
    hunches_of,
    machine_of,
    misfit,
    options_of,
    sensible,
    space_of,
)
from llamastream.bench.tune.trial import Figures, Work
from llamastream.bench.tune.verdict import Gain, gain_of
from llamastream.engine import EngineOptions
from llamastream.engine.resolve import check_model, resolve
from llamastream.errors import SettingError, TrialFailedError

REQUEST_SHARE = 1 / 30
"""Of the budget: where the requests of a trial take longer, one after the other, they are made shorter."""
LEAST_TOKENS = 8
FINAL_SHARE = 0.4
"""Of the budget: for the final."""
FINALISTS = 2
MOST_PAIRS = 40
LAP_SHARE = 1 / 200
"""Of the budget: the shortest lap that is worth a start."""
MOST_UNIT = 64
"""Times that the least work is done in a lap."""
QUICK = 0.25
"""Share of the trials that take less than what is planned with: one slow start must not make the search a short one."""
WORTHWHILE = 8
"""Candidates for which it is worth while to begin anew."""
PATIENCE, LEAST_PATIENCE = 4.0, 15.0
"""A trial that takes so many times as long as was to be expected hangs, but never before so many seconds."""


@dataclasses.dataclass
class Watcher:
    """Hears how a search goes."""

    on_model: Callable[[str], None] = lambda model: None
    on_trial: Callable[[str, str, int], None] = lambda settings, part, number: None
    on_tried: Callable[[Tried], None] = lambda tried: None


class Costs:
    """What trials took so far, in seconds: what each costs beside its measurement, and that for an effort of 1."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._laps: list[float] = []

    @property
    def known(self) -> bool:
        """Whether there was a trial."""
        return bool(self._laps)

    @property
    def start(self) -> float:
        """The start, the warm-up, the end."""
        return percentile(sorted(self._starts), QUICK)

    @property
    def lap(self) -> float:
        """An effort of 1."""
        return percentile(sorted(self._laps), QUICK)

    def of(self, effort: int) -> float:
        """A whole trial."""
        return self.start + self.lap * effort

    def add(self, whole: float, lap: float, effort: int) -> None:
        """A trial is through."""
        self._starts.append(max(0.0, whole - lap))
        self._laps.append(lap / effort)

    def scale(self, factor: int) -> None:
        """Efforts are larger from now on."""
        self._laps = [lap * factor for lap in self._laps]


class Contestant(Struct, frozen=True):
    """Settings that stand in the final."""

    words: str
    options: EngineOptions


class Search:
    """The search for one model, to be run once.

    Args:
        model: path. options: what all trials have in common. seconds: for all of it. nonce: of the prompts' words.
        watcher: hears of it. change_space, allowed: for who wants to try other values, or combinations.

    Raises:
        SettingError: the settings do not fit together. ModelFileError: the model cannot be used.
    """

    def __init__(
        self,
        model: str,
        options: EngineOptions,
        settings: TuneSettings,
        seconds: float,
        nonce: str,
        watcher: Watcher | None = None,
        *,
        change_space: Callable[[tuple[Dimension, ...]], tuple[Dimension, ...]] = lambda space: space,
        allowed: Callable[[Candidate], bool] = sensible,
    ) -> None:
        self.tried: list[Tried] = []
        self.interrupted = False
        self._settings = settings
        self._seconds = seconds
        self._watcher = watcher or Watcher()
        self._allowed = allowed
        machine = machine_of(options)
        base = base_of(options, model)
        # the same context for each slot, however many there are: otherwise fewer slots would do less work
        most = base.parallel if settings.goal == "latency" else max(settings.at_once, AUTO_SLOTS)
        ctx_size = resolve(msgspec.structs.replace(base, parallel=most))[0].ctx_size
        assert ctx_size is not None
        if settings.prompt_tokens + settings.output_tokens > ctx_size * 0.9:
            raise SettingError(
                f"prompt_tokens and output_tokens ({settings.prompt_tokens} and {settings.output_tokens}) do not fit "
                f"into the context of a slot, {ctx_size} tokens: ask for less, or set ctx_size"
            )
        self._base = msgspec.structs.replace(base, ctx_size=ctx_size, start_timeout=min(base.start_timeout, seconds))
        self._defaults = Contestant(DEFAULTS, defaults_of(self._base, machine))
        self._space = change_space(space_of(settings, self._base, machine))
        self._size = check_model(model).size
        self._work = Work(
            settings.goal, settings.prompt_tokens, settings.output_tokens, settings.at_once, settings.seed, nonce
        )
        self._final: dict[str, list[Figures]] = {}
        self._first: Figures | None = None
        self._contestants: list[Contestant] = []
        self._halving: Halving | None = None
        self._engine = ""
        self._costs = Costs()

    async def run(self) -> ModelResult:
        """Search. Cancelling it once ends the server and gives what was found so far: then `interrupted` is set.

        Raises:
            LlamaStreamError: not even the defaults can be measured.
        """
        self._began = monotonic()
        self._deadline = self._began + self._seconds
        try:
            await self._run()
        except asyncio.CancelledError:
            if self._first is None:
                raise
            self.interrupted = True
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        return self._result()

    async def _run(self) -> None:
        seen = await trials.survey(self._defaults.options, self._work, self._seconds)
        self._engine = seen.engine
        whole = seen.request * self._work.requests
        scale = min(1.0, self._seconds * REQUEST_SHARE / whole) if whole else 1.0
        self._work = msgspec.structs.replace(
            self._work,
            calibration=seen.calibration,
            prompt=max(LEAST_TOKENS, round(self._work.prompt * scale)),
            output=max(LEAST_TOKENS, round(self._work.output * scale)),
        )
        self._first = await self._try(self._defaults, "defaults", 0, 1)
        if self._first is None:
            raise TrialFailedError(f"llama-server's defaults cannot be measured: {self.tried[-1].reason}")
        # A start measures nothing: what follows it should take as long, at the least.
        wanted = max(self._costs.start, self._seconds * LAP_SHARE)
        self._work = msgspec.structs.replace(
            self._work, unit=max(1, min(MOST_UNIT, round(wanted / max(self._costs.lap, 1e-3))))
        )
        self._costs.scale(self._work.unit)
        await self._search(monotonic() + (self._deadline - monotonic()) * (1 - FINAL_SHARE))
        await self._meet()

    async def _search(self, end: float) -> None:
        """Halvings until the time is over, the first in half of it: then it is better known what trials cost."""
        most = math.prod(len(dimension.values) for dimension in self._space)
        halving: Halving | None = None
        while halving is None or self._plan(end - monotonic(), most).rounds[0][0] > 1:
            left = end - monotonic()
            plan = self._plan(left / 2, most)
            if plan.rounds[0][0] < WORTHWHILE:
                plan = self._plan(left, most)
            if halving is None:
                hunches = hunches_of(self._settings, self._space)
                halving = Halving(self._space, plan, seed=self._settings.seed, allowed=self._allowed, hunches=hunches)
                self._halving = halving
            else:
                halving.again(plan)
            before = len(self.tried)
            while (trial := halving.next()) is not None:
                if monotonic() + self._costs.of(trial.effort) > end:
                    return
                halving.tell(trial, await self._one(trial))
            if len(self.tried) == before:
                return  # everything was tried

    def _plan(self, seconds: float, most: int) -> Plan:
        return plan_for(seconds, self._costs.start, self._costs.lap, most)

    async def _one(self, trial: Trial) -> float | None:
        options = options_of(trial.candidate, self._base)
        words = described(trial.candidate, self._space)
        if reason := misfit(options):
            self._tell(Tried(words, "search", trial.round, trial.effort, monotonic() - self._began, None, reason))
            return None
        figures = await self._try(Contestant(words, options), "search", trial.round, trial.effort)
        return None if figures is None else figures.score

    async def _meet(self) -> None:
        """The final: there and back, so that a machine that becomes slower or faster meets all alike."""
        assert self._halving is not None
        best = self._halving.best(FINALISTS)
        self._contestants = [Contestant(described(one, self._space), options_of(one, self._base)) for one in best]
        everybody = [self._defaults, *self._contestants]
        for number in range(MOST_PAIRS):
            if not self._contestants or monotonic() + self._costs.of(1) * len(everybody) > self._deadline:
                return
            for contestant in everybody if number % 2 == 0 else reversed(everybody):
                figures = await self._try(contestant, "final", number, 1)
                if figures is None:
                    if contestant is self._defaults:
                        return
                    self._contestants.remove(contestant)
                    self._final.pop(contestant.words, None)
                else:
                    self._final.setdefault(contestant.words, []).append(figures)
            everybody = [self._defaults, *self._contestants]

    async def _try(self, contestant: Contestant, part: str, number: int, effort: int) -> Figures | None:
        self._watcher.on_trial(contestant.words, part, number)
        before = monotonic()
        figures, reason = None, ""
        try:
            figures = await trials.measure(contestant.options, self._work, effort, self._patience(effort))
        except TrialFailedError as error:
            reason = error.message
        else:
            self._costs.add(monotonic() - before, figures.took, effort)
        at = before - self._began
        self._tell(Tried(contestant.words, part, number, effort, at, figures, reason))
        return figures

    def _patience(self, effort: int) -> float:
        """Seconds that a trial may take: several times what is to be expected, but hardly more than there are left."""
        left = max(0.0, self._deadline - monotonic())
        if not self._costs.known:
            return left
        expected = self._costs.of(effort)
        return min(max(LEAST_PATIENCE, expected * PATIENCE), left + max(expected, LEAST_PATIENCE / 3))

    def _tell(self, tried: Tried) -> None:
        self.tried.append(tried)
        self._watcher.on_tried(tried)

    def _result(self) -> ModelResult:
        assert self._first is not None
        before = self._final.get(DEFAULTS, [])
        finalists = [self._judged(one, before) for one in self._contestants if one.words in self._final]
        finalists.sort(key=lambda one: one.score, reverse=True)
        if not finalists and self._halving is not None:
            best = self._halving.best(FINALISTS)
            finalists = [Finalist(described(c, self._space), math.exp(self._halving.score(c)), None) for c in best]
        winner = next((one for one in finalists if one.gain is not None and one.gain.clear), None)
        options = {one.words: one.options for one in (self._defaults, *self._contestants)}
        words = DEFAULTS if winner is None else winner.settings
        return ModelResult(
            model=self._base.model or "",
            size=self._size,
            engine=self._engine,
            ctx_size=self._base.ctx_size or 0,
            prompt_tokens=self._work.prompt,
            output_tokens=self._work.output,
            defaults=mean_figures(before) if before else self._first,
            best=None if winner is None else mean_figures(self._final[words]),
            chosen=chosen_of(options[words]),
            chosen_words=words,
            gain=None if winner is None else winner.gain,
            tried=tuple(self.tried),
            finalists=tuple(finalists),
            seconds=monotonic() - self._began,
            interrupted=self.interrupted,
        )

    def _judged(self, contestant: Contestant, before: Sequence[Figures]) -> Finalist:
        after = self._final[contestant.words]
        pairs = min(len(before), len(after))  # the last pair of a search that was broken off may lack one
        gain: Gain | None = None
        if pairs:
            old, new = ([figures.score for figures in each[:pairs]] for each in (before, after))
            gain = gain_of(old, new, at_once=max(1, len(self._contestants)))
        return Finalist(contestant.words, mean_figures(after).score, gain)


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """Their geometric means."""

    known = {
        field.name: [value for each in figures if (value := getattr(each, field.name)) is not None]
        for field in msgspec.structs.fields(Figures)
    }
    means = {
        name: math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values)) if values else None
        for name, values in known.items()
    }
    return msgspec.convert(means, Figures)


def chosen_of(options: EngineOptions) -> dict[str, object]:
    """What belongs into a settings file: the settings of a server that were looked for, and those they depend on."""
    plain = EngineOptions()
    names = ("kind", "binary", "model", "threads", "threads_batch", "parallel", "ctx_size", "cache_ram", "gpu",
             "gpu_layers", "extra_args")  # fmt: skip
    always = ("model", "threads", "threads_batch", "parallel", "ctx_size")
    found = {name: getattr(options, name) for name in names}
    return {name: value for name, value in found.items() if name in always or value != getattr(plain, name)}
