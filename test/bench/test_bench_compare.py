"""Baselines are judged by what chance can do: on made-up runs, and on recorded ones."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from llamastream.bench.baselines import baseline_directory, names, read, save
from llamastream.bench.compare import Comparison, compare, permutation_test
from llamastream.bench.loads import Load
from llamastream.bench.machine import Machine
from llamastream.bench.report import KEPT, LoadResult, Report, ServerFacts
from llamastream.errors import BenchError, SettingError

MACHINE = Machine("a CPU", 2, 2, 1 << 30, "Linux", "CPython", "0.1.0")
ONE = Load("closed", 1)
Repeats = list[list[float]]


def report(measures: dict[str, Repeats], load: Load = ONE, **settings: object) -> Report:
    result = LoadResult(
        load=load, requests=1, failed=0, errors={}, recoveries={}, retries=0, prompt_tokens=None, cached_tokens=None,
        output_tokens=None, percentiles={}, per_repeat=measures, seconds=1.0, generator_load=0.0, lag=0.0,
    )  # fmt: skip
    return Report("2026-01-01T00:00:00+00:00", MACHINE, ServerFacts(model="demo"), {"turns": 1, **settings}, [result])


def made_up(chance: random.Random, slower: float = 1.0, repeats: int = 10, tail: float = 0.0) -> Report:
    """A run: each repeat has its own mood, each request is a little different, and some are disturbed."""

    def repeat(typical: float) -> list[float]:
        mood = chance.lognormvariate(0, 0.02)
        return sorted(
            typical * slower * mood * chance.lognormvariate(0, 0.03) * (3.0 if chance.random() < tail else 1.0)
            for _ in range(20)
        )

    return report(
        {name: [repeat(typical) for _ in range(repeats)] for name, typical in zip(KEPT, (0.1, 0.01, 1.0), strict=True)}
    )


def test_equal_runs_seldom_raise_an_alarm() -> None:
    chance = random.Random(11)
    alarms = sum(bool(compare(made_up(chance), made_up(chance)).regressions) for _ in range(60))
    assert alarms <= 3


def test_what_is_slower_by_a_tenth_is_found_and_what_is_faster_is_no_alarm() -> None:
    chance = random.Random(12)
    for _ in range(10):
        found = compare(made_up(chance), made_up(chance, 1.1))
        assert {finding.measure for finding in found.regressions} == set(KEPT)
        assert found.summary.startswith("slower: 3 of 3 measures, at most by ")
        better = compare(made_up(chance), made_up(chance, 0.9))
        assert better.regressions == ()
        assert {finding.verdict for finding in better.findings} == {"better"}


def test_requests_that_are_disturbed_more_often_are_no_slower_server() -> None:
    chance = random.Random(13)
    found = compare(made_up(chance), made_up(chance, tail=0.3))
    assert found.regressions == ()


def test_a_difference_that_is_certain_but_small_does_not_matter() -> None:
    before = report({"end_to_end": [[1.0, 1.001]] * 10})
    now = report({"end_to_end": [[1.03, 1.031]] * 10})
    found = compare(before, now).findings[0]
    assert found.p < 0.01
    assert (found.verdict, round(found.slowdown, 3)) == ("same", 0.03)
    assert compare(before, now, threshold=0.02).findings[0].verdict == "worse"


def test_few_repeats_prove_nothing_and_that_is_said() -> None:
    found = compare(report({"end_to_end": [[1.0]] * 2}), report({"end_to_end": [[2.0]] * 2}))
    assert found.regressions == ()
    assert "with 2 repeats" in found.notes[0]
    certain = compare(report({"end_to_end": [[1.0]] * 5}), report({"end_to_end": [[2.0]] * 5}))
    assert len(certain.regressions) == 1
    assert certain.notes == ()


def test_probabilities_are_exact_where_all_divisions_can_be_tried() -> None:
    # of the 20 ways to choose 3 of 6, two are as far apart as these
    assert permutation_test([([[1.0], [1.1], [1.2]], [[2.0], [2.1], [2.2]])]) == [0.1]
    assert permutation_test([([[1.0]] * 3, [[1.0]] * 3)]) == [1.0]
    assert permutation_test([]) == []


def test_the_more_measures_the_more_certainty_is_needed_unless_they_rise_and_fall_together() -> None:
    chance = random.Random(5)
    old, new = ([[chance.gauss(mean, 0.1)] for _ in range(8)] for mean in (1.0, 1.15))
    alone = permutation_test([(old, new)])[0]
    others = [
        ([[chance.gauss(1, 0.1)] for _ in range(8)], [[chance.gauss(1, 0.1)] for _ in range(8)]) for _ in range(5)
    ]
    assert permutation_test([(old, new)] * 5)[0] == alone < 0.05
    assert permutation_test([(old, new), *others])[0] > 1.5 * alone


def test_a_repeat_in_which_nothing_succeeded_has_no_say() -> None:
    found = compare(report({"end_to_end": [[1.0], [], *[[1.0]] * 4]}), report({"end_to_end": [[2.0]] * 5 + [[]]}))
    assert [finding.verdict for finding in found.findings] == ["worse"]


def test_measurements_of_something_else_are_not_compared() -> None:
    with pytest.raises(BenchError, match="turns was 1 and is 2"):
        compare(report({"end_to_end": [[1.0]]}), report({"end_to_end": [[1.0]]}, turns=2))
    with pytest.raises(BenchError, match="no measure in common"):
        compare(report({"end_to_end": [[1.0]]}), report({"end_to_end": [[1.0]]}, Load("closed", 9)))


def test_another_machine_or_server_is_noted() -> None:
    now = report({"end_to_end": [[1.0]] * 5})
    now = msgspec.structs.replace(
        now, machine=msgspec.structs.replace(MACHINE, cpu="another"), server=ServerFacts(model="other")
    )
    notes = compare(report({"end_to_end": [[1.0]] * 5}), now).notes
    assert notes == (
        "another machine: cpu was a CPU, and is another",
        "another server: model was demo, and is other",
    )


# -- recorded runs ------------------------------------------------------------------------------------------


class Recorded(msgspec.Struct):
    """Pairs of equal runs; how they were made stands in the file itself."""

    about: str
    pairs: list[tuple[dict[str, Repeats], dict[str, Repeats]]]


RECORDED = Path(__file__).with_name("recorded_runs.json")


@pytest.fixture(scope="module")
def recorded() -> list[tuple[dict[str, Repeats], dict[str, Repeats]]]:
    pairs = msgspec.json.decode(RECORDED.read_bytes(), type=Recorded).pairs
    assert len(pairs) == 20
    return pairs


def slowed(measures: dict[str, Repeats], factor: float) -> dict[str, Repeats]:
    return {name: [[value * factor for value in repeat] for repeat in repeats] for name, repeats in measures.items()}


def verdicts(pairs: list[tuple[dict[str, Repeats], dict[str, Repeats]]], factor: float) -> list[Comparison]:
    return [compare(report(before), report(slowed(now, factor))) for before, now in pairs]


def test_twenty_pairs_of_equal_runs_raise_at_most_one_alarm(
    recorded: list[tuple[dict[str, Repeats], dict[str, Repeats]]],
) -> None:
    assert sum(bool(found.regressions) for found in verdicts(recorded, 1.0)) <= 1


def test_a_slowdown_by_a_tenth_is_found_in_at_least_eighteen_of_twenty(
    recorded: list[tuple[dict[str, Repeats], dict[str, Repeats]]],
) -> None:
    assert sum(bool(found.regressions) for found in verdicts(recorded, 1.1)) >= 18


# -- kept ---------------------------------------------------------------------------------------------------


def test_a_baseline_comes_back_as_it_was_and_is_replaced_in_one_step(tmp_path: Path) -> None:
    directory = tmp_path / "baselines"
    first, second = report({"end_to_end": [[1.0]]}), report({"end_to_end": [[2.0]]})
    path = save(first, "main", directory)
    assert read("main", directory) == first
    save(second, "main", directory)
    assert read("main", directory) == second
    assert names(directory) == ["main"]
    assert [file.name for file in directory.iterdir()] == [path.name]  # nothing half-written is left
    assert directory.stat().st_mode & 0o077 == 0


def test_baselines_are_in_the_state_directory() -> None:
    assert baseline_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/llamastream/baselines")


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a" * 65, "-x"])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not allowed; allowed: letters"):
        save(report({}), name, tmp_path)


def test_an_unknown_baseline_is_told_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there are none yet; `llamastream bench --save NAME`"):
        read("main", tmp_path)
    save(report({}), "other", tmp_path)
    with pytest.raises(SettingError, match="known: other"):
        read("main", tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_baseline_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text(text)
    with pytest.raises(BenchError, match=r"main\.json cannot be read: .*; make it anew with --save main"):
        read("main", tmp_path)
