"""What is asked, when, and what the figures are: the pure parts of a measurement."""

from __future__ import annotations

import random
from itertools import pairwise

import msgspec
import pytest

from llamastream.bench.lengths import Lengths, parse_concurrency, parse_lengths, parse_rates
from llamastream.bench.loads import Extent, Load, arrival_times, extent_of, loads_of
from llamastream.bench.report import count, notes_on, summarise
from llamastream.bench.samples import Lap, Sample
from llamastream.bench.settings import BenchSettings
from llamastream.bench.statistics import estimate_percentile, estimate_pooled, percentile, percentile_ranks
from llamastream.bench.workload import Calibration, Prompt, Workload, calibrate, parse_prompts
from llamastream.errors import SettingError
from llamastream.settings import load
from llamastream.types import Timings

# -- what people write --------------------------------------------------------------------------------------


def test_lengths_and_lists_are_read() -> None:
    assert parse_lengths("128", "x") == Lengths(128, 128)
    assert parse_lengths("64:256", "x") == Lengths(64, 256)
    assert parse_concurrency("1, 2,8") == (1, 2, 8)
    assert parse_rates("0.5,2") == (0.5, 2.0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "prompt_tokens",
            "many",
            "prompt_tokens = 'many' from --prompt-tokens is not allowed; allowed: a whole number",
        ),
        ("prompt_tokens", "9:3", "two as in 64:256"),
        ("output_tokens", "0", "from 1"),
        ("concurrency", "1,1", "each once"),
        ("concurrency", "0", "from 1"),
        ("rate", "-1", "numbers from 0.0001 to 100000"),
        ("rate", "nan", "requests per second"),
        ("rate", "1;2", "separated by commas"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(BenchSettings, given={name: value}, environ={}, table={})
    assert says in str(caught.value)


def test_prompts_of_a_file_and_made_up_conversations_exclude_each_other() -> None:
    with pytest.raises(SettingError, match=r"turns do not apply.*\(turns from --turns, prompts from --prompts\)"):
        load(BenchSettings, given={"prompts": "x.jsonl", "turns": 2}, environ={}, table={})


def test_without_any_load_there_is_an_error_and_with_a_rate_no_closed_loop() -> None:
    assert [load.label for load in loads_of(BenchSettings())] == ["1 at once", "4 at once"]
    assert [load.label for load in loads_of(BenchSettings(rate="0.5"))] == ["0.5/s"]
    assert [load.label for load in loads_of(BenchSettings(rate="2", concurrency="3"))] == ["3 at once", "2/s"]
    with pytest.raises(SettingError, match="nothing to measure"):
        loads_of(BenchSettings(concurrency=""))


def test_a_load_lasts_ten_seconds_unless_requests_are_given() -> None:
    assert extent_of(BenchSettings()) == Extent(None, 10.0)
    assert extent_of(BenchSettings(requests=5)) == Extent(5, None)
    assert extent_of(BenchSettings(requests=5, seconds=2)) == Extent(5, 2)


# -- when ---------------------------------------------------------------------------------------------------


def test_constant_arrivals_keep_their_distance() -> None:
    assert list(arrival_times(4, Extent(5, None), "constant", random.Random(1))) == [0, 0.25, 0.5, 0.75, 1.0]
    assert len(list(arrival_times(4, Extent(None, 2.0), "constant", random.Random(1)))) == 8


def test_poisson_arrivals_have_their_rate_and_their_spread() -> None:
    times = list(arrival_times(10, Extent(20_000, None), "poisson", random.Random(1)))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.03)
    # exponential: the standard deviation is the mean
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(0.1, rel=0.03)


# -- what ---------------------------------------------------------------------------------------------------

WORKLOAD = Workload(Lengths(10, 100), Lengths(5, 50), shared_prefix=20, turns=3, calibration=Calibration(0.0, 1.0))


def prompts_of(workload: Workload, key: str, number: int) -> list[Prompt]:
    conversation, answer, found = workload.conversation(key, number), None, []
    while (prompt := conversation.next(answer)) is not None:
        found.append(prompt)
        answer = "said"
    return found


def test_each_turn_sends_the_ones_before_it_along() -> None:
    first, second, third = prompts_of(WORKLOAD, "k", 0)
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[2] == {"role": "assistant", "content": "said"}
    assert third.messages[: len(second.messages)] == second.messages
    assert 5 <= (third.max_tokens or 0) <= 50


def test_prefixes_are_shared_and_all_else_is_not() -> None:
    one, other = prompts_of(WORKLOAD, "k", 0)[0], prompts_of(WORKLOAD, "k", 1)[0]
    assert one.messages[0] == other.messages[0]
    assert len(one.messages[0]["content"].split()) == 20
    assert one.messages[1]["content"].split()[:3] != other.messages[1]["content"].split()[:3]


def test_another_measurement_asks_as_much_in_other_words() -> None:
    # or else a server that still has the prompts of the last one in its cache would seem to be faster
    before, now = (msgspec.structs.replace(WORKLOAD, nonce=nonce) for nonce in ("a", "b"))
    for number in range(5):
        for one, other in zip(prompts_of(before, "k", number), prompts_of(now, "k", number), strict=True):
            assert one.max_tokens == other.max_tokens
            assert len(one.messages[-1]["content"].split()) == len(other.messages[-1]["content"].split())
            assert one.messages != other.messages


def test_words_are_as_long_as_the_server_says() -> None:
    found = calibrate((16, 30), (144, 286))
    assert (found.overhead, found.per_word) == (-2.0 if found.overhead < 0 else 0.0, 2.0)
    assert found.words(100) == 50
    assert calibrate((16, 30), (144, 30)) == Calibration()  # a server that does not count


def test_a_file_of_prompts_may_have_strings_messages_and_texts() -> None:
    text = '"Who are you?"\n\n{"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}\n{"prompt": "Once"}\n'
    found = parse_prompts(text, "p.jsonl")
    assert found[0] == Prompt(messages=({"role": "user", "content": "Who are you?"},))
    assert found[1] == Prompt(messages=({"role": "user", "content": "a"},), max_tokens=3)
    assert found[2] == Prompt(text="Once")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "p.jsonl has no prompts"),
        ('"a"\n{"prompt": 3}', "p.jsonl, line 2"),
        ("not json", "p.jsonl, line 1"),
        ("{}", "one of messages and prompt"),
        ('{"prompt": "a", "messages": []}', "one of messages and prompt"),
        ('{"messages": []}', "messages is empty"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ('{"prompt": "a", "temperature": 0}', "temperature"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(text: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_prompts(text, "p.jsonl")
    assert says in str(caught.value)


# -- figures ------------------------------------------------------------------------------------------------


def sample(**changes: object) -> Sample:
    values = {
        "repeat": 1, "number": 0, "scheduled": 1.0, "started": 1.5, "first": 2.0, "finished": 4.0, "ended": 4.1,
        "gaps": (0.5, 0.5, 1.0), "tokens": 5, "prompt_tokens": 30, "cached_tokens": 10,
    }  # fmt: skip
    return Sample(**{**values, **changes})  # type: ignore[arg-type]  # of every type


def test_latencies_count_from_when_a_request_was_due() -> None:
    one = sample()
    assert one.lag == 0.5
    assert one.time_to_first_token == 1.0
    assert one.end_to_end == pytest.approx(3.1)


def test_the_first_token_is_in_no_decode_speed() -> None:
    timings = Timings(prompt_n=20, prompt_ms=400, predicted_n=5, predicted_ms=2500)
    one = sample(timings=timings)
    assert one.client_tokens_per_second == 2.0  # four tokens in two seconds
    assert one.server_tokens_per_second == 1.6
    assert one.tokens_per_second == 1.6  # what seems faster than it was made lay in a buffer
    assert one.server_prefill_tokens_per_second == 50
    assert one.prefill_tokens_per_second == 40
    assert sample(tokens=1).tokens_per_second is None


def test_throughput_counts_what_arrived_while_the_load_was_what_it_should_be() -> None:
    lap = Lap(Load("closed", 1), 1, (sample(),), seconds=4.1, steady=2.5, cpu=0.1)
    # of four chunks, those at 2.0 and 2.5 had arrived: half of five tokens
    assert lap.total_tokens_per_second == 1.0
    whole = Lap(Load("closed", 1), 1, (sample(),), seconds=5.0, steady=5.0, cpu=0.1)
    assert whole.total_tokens_per_second == 1.0
    assert whole.requests_per_second == 0.2


def test_what_failed_is_counted_by_class_and_in_no_figure_of_speed() -> None:
    bad = sample(error="ServerError", message="no", ended=1.51, first=None, finished=None, gaps=(), tokens=0)
    mended = sample(recoveries=("reattach",), retries=2)
    laps = [Lap(Load("closed", 2), 1, (sample(), bad, mended), 5.0, 5.0, 4.0)]
    result = summarise(laps, seed=1)[0]
    assert (result.requests, result.failed, result.errors) == (3, 1, {"ServerError": 1})
    assert (result.recoveries, result.retries) == ({"reattach": 1}, 2)
    assert result.per_repeat["end_to_end"] == [[3.1, 3.1]]
    assert result.percentiles["time_to_first_token"]["p50"].value == 1.0
    notes = notes_on([result], slots=1)
    assert [words in note for words, note in zip(("always wait", "generator", "500 ms late"), notes, strict=True)] == [
        True
    ] * 3


def test_answers_out_of_a_cache_are_told_of() -> None:
    samples = tuple(sample(response_cache=how) for how in ("", "miss", "hit", "shared"))
    result = summarise([Lap(Load("closed", 1), 1, samples, 5.0, 5.0, 0.0)], seed=1)[0]
    assert result.repeated == 2
    assert [note for note in notes_on([result], slots=1) if "2 of 4 answers came from a response cache" in note]


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1200, "1,200 trials")]
)
def test_one_of_a_thing_is_not_told_as_several(number: int, shown: str) -> None:
    assert count(number, "trial") == shown


# -- statistics ---------------------------------------------------------------------------------------------


def test_percentiles_lie_between_the_values() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0, 0.5, 1)] == [1.0, 2.5, 4.0]
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("count", "low", "high"), [(5, None, None), (6, 0, 5), (8, 0, 7), (9, 1, 7), (12, 2, 9), (20, 5, 14)]
)
def test_the_interval_of_a_median_is_that_of_the_tables(count: int, low: int | None, high: int | None) -> None:
    assert percentile_ranks(count, 0.5) == (low, high)


def test_of_a_99th_percentile_nothing_is_said_above_the_largest_of_few() -> None:
    found = estimate_percentile([float(number) for number in range(100)], 0.99)
    assert found.low is not None
    assert found.high is None
    assert estimate_percentile([float(number) for number in range(1000)], 0.99).high is not None


def test_intervals_of_percentiles_hold_the_truth_as_often_as_they_say() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(400):
        found = estimate_percentile([chance.random() for _ in range(60)], 0.9)
        held += (found.low or 0.0) <= 0.9 <= (found.high or 1.0)
    assert held >= 0.93 * 400


def test_intervals_of_gaps_know_that_gaps_of_one_stream_are_alike() -> None:
    chance = random.Random(3)
    truth, held, narrow = 0.05, 0, 0
    for seed in range(60):
        speeds = [chance.lognormvariate(0, 0.5) for _ in range(30)]  # streams differ, gaps within one hardly
        groups = [[truth * speed * chance.uniform(0.98, 1.02) for _ in range(50)] for speed in speeds]
        alike = estimate_pooled(groups, [0.5], seed)[0]
        alone = estimate_percentile([gap for group in groups for gap in group], 0.5)
        held += (alike.low or 0) <= truth <= (alike.high or 1)
        narrow += (alone.low or 0) <= truth <= (alone.high or 1)
    assert held >= 51  # of 60: what a 95 % interval reaches in all but one of a thousand such tests
    assert narrow < 40  # as if each gap stood for itself: far too sure


def test_without_gaps_there_is_no_figure() -> None:
    assert estimate_pooled([], [0.5], 1) == []
    assert estimate_pooled([[0.1, 0.2]], [0.5], 1)[0].low is None  # of one stream nobody knows how others are
