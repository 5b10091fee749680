"""Each rule of alerts fires and recovers at a real fault of a real `serve`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wires import ask

from commandline import LONG, run
from llamastream.client import StreamingClient
from llamastream.engine import EngineOptions, launch
from polling import wait_for
from ports import free_ports
from serving import Serving, busy, serving

QUESTION = [{"role": "user", "content": LONG.question}]
QUICK = {
    "group_seconds": "0", "clear_after": "0", "down_after": "0", "window": "5", "min_requests": "2",
    "queue_length_for": "0", "crash_loop_ends": "2", "disk_free": "",
}  # fmt: skip


@contextmanager
def watched(
    environ: dict[str, str], *arguments: str, instances: int = 1, port: str = "", **alerts: str
) -> Iterator[Serving]:
    """`serve` with the gateway, quick settings, and these settings of alerts."""
    port = port or str(free_ports(1))
    settings = {f"LLAMASTREAM_ALERTS_{name.upper()}": value for name, value in {**QUICK, **alerts}.items() if value}
    quick = ("--look-interval", "0.2", "--restart-delay", "0.1", "--no-warm", "--instances", str(instances))
    with serving({**environ, **settings}, "--port", port, *quick, *arguments) as started:
        started.ready()
        yield started


def fires_and_recovers(started: Serving, rule: str, since: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    fired = started.expect("alert", since, rule=rule, alert="firing")
    return fired, started.expect("alert", started.events.index(fired), rule=rule, alert="recovered")


def pid(started: Serving, index: int = 0) -> int:
    return int(started.status()["instances"][index]["pid"])


def kill(started: Serving, index: int = 0) -> None:
    """Kill a server, and wait until the next is ready."""
    since = len(started.events)
    os.kill(pid(started, index), signal.SIGKILL)
    started.expect("state", since, after="ready")


def test_a_killed_server_is_down_and_up_again_and_everybody_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "messages"
    code = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + chr(10))"
    script = tmp_path / "tell.py"
    script.write_text(code)
    with watched(environ, command=f"{sys.executable} {script}") as started:
        kill(started)
        fired, recovered = fires_and_recovers(started, "instance_down")
        assert (fired["level"], fired["instance"]) == ("error", "demo-0")
        assert "the process ended by itself (signal 9)" in fired["message"]
        assert "demo-0: is well again, was not so for" in recovered["message"]
        assert started.command("stop").returncode == 0  # what is under way is still told
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["kind"] for each in told if each["rule"] == "instance_down"] == ["firing", "recovered"]


def test_a_planned_restart_is_no_alert(environ: dict[str, str]) -> None:
    with watched(environ) as started:
        assert started.command("restart", "demo-0").returncode == 0
        kill(started)
        fired = started.expect("alert", alert="firing")
        assert fired["rule"] == "instance_down"
        assert "signal 9" in fired["message"]


def test_a_server_that_is_killed_again_and_again_is_a_crash_loop(environ: dict[str, str]) -> None:
    with watched(environ) as started:
        kill(started)
        kill(started)
        fired, recovered = fires_and_recovers(started, "crash_loop")
        assert "2 ends" in fired["message"]
        assert recovered["subjects"][0]["lasted"] > 0


def test_a_server_that_failed_for_good_is_a_crash_loop_until_it_is_started_again(environ: dict[str, str]) -> None:
    with watched(environ, "--crash-limit", "1", instances=2, crash_loop_ends="3") as started:
        os.kill(pid(started), signal.SIGKILL)
        started.expect("state", after="failed")
        started.expect("alert", rule="crash_loop", alert="firing")
        assert started.command("alerts").returncode == 3
        assert started.command("restart", "demo-0").returncode == 0
        started.expect("alert", rule="crash_loop", alert="recovered")


def test_a_frozen_server_is_a_wedge(environ: dict[str, str]) -> None:
    with watched(environ, "--wedge-after", "0.5", "--canary-timeout", "0.5") as started:
        os.kill(pid(started), signal.SIGSTOP)
        fired, _ = fires_and_recovers(started, "wedge")
        assert "no sign of life" in fired["message"]


def test_memory_above_its_limit_and_a_disk_that_is_too_full_and_neither_any_more(environ: dict[str, str]) -> None:
    file = Path(environ["HOME"]) / "settings.toml"
    file.write_text('[alerts]\nmemory = "1MiB"\ndisk_free = "1000TiB"\n')
    with watched({**environ, "LLAMASTREAM_CONFIG": str(file)}) as started:
        memory = started.expect("alert", rule="memory", alert="firing")
        assert (memory["instance"], memory["level"]) == ("demo-0", "warning")
        assert "the limit is 1.0 MiB" in memory["message"]
        disk = started.expect("alert", rule="disk", alert="firing")
        assert "llamastream" in disk["subjects"][0]["name"]
        file.write_text('[alerts]\nmemory = "1TiB"\ndisk_free = "1KiB"\n')
        assert started.command("reload").returncode == 0
        started.expect("alert", rule="memory", alert="recovered")
        started.expect("alert", rule="disk", alert="recovered")


def test_memory_that_the_fleet_warns_of_is_an_alert_until_the_server_is_replaced(environ: dict[str, str]) -> None:
    with watched(environ) as started:
        size = started.wait_status(lambda found: found["instances"][0]["rss_bytes"] > 0)["instances"][0]["rss_bytes"]
    with watched(environ, "--memory-limit", str(int(size * 1.15))) as started:  # the fleet warns from 80 % of it on
        fired = started.expect("alert", rule="memory", alert="firing")
        assert "of memory, the limit is" in fired["message"]
        assert started.command("restart", "demo-0").returncode == 0
        started.expect("alert", rule="memory", alert="recovered")


def test_memory_that_grows_with_the_prompt_cache_is_an_alert_until_the_server_is_replaced(
    environ: dict[str, str],
) -> None:
    """llama-server keeps the state of prompts that lost their slot: with other prompts each time, it grows."""
    many = ("--parallel", "2", "--cache-ram", "2048", "--memory-window", "3", "--memory-limit", "off")
    with watched(environ, *many, memory_growth="100MiB") as started:
        url = started.ready()["url"]
        over = threading.Event()

        def ask_on(worker: int) -> None:
            number = 0
            while not over.is_set():
                text = f"{worker} {number} " + "long ago and far away " * 60
                assert ask(url, body={"prompt": text, "max_tokens": 1}, path="/v1/completions").status == 200
                number += 1

        with ThreadPoolExecutor(2) as pool:
            work = [pool.submit(ask_on, worker) for worker in range(2)]
            try:
                fired = started.expect("alert", rule="memory_growth", alert="firing")
                since = len(started.events)
                assert started.command("restart", "demo-0").returncode == 0
                # while it is asked for as much as before: what ends the growth is the new process
                recovered = started.expect("alert", since, rule="memory_growth", alert="recovered")
            finally:
                over.set()
            for each in work:
                each.result()
        (subject,) = fired["subjects"]
        assert (subject["name"], fired["instance"]) == ("demo-0", "demo-0")
        assert subject["value"] > 100 << 20
        assert "an hour, the limit is 100.0 MiB an hour" in fired["message"]
        replaced = started.expect("state", since, before="draining", after="restarting")
        assert started.events.index(replaced) < started.events.index(recovered)
        assert not [each for each in started.events if each.get("rule") == "instance_down"]


def test_a_full_slot_makes_a_queue_and_waits(environ: dict[str, str]) -> None:
    with watched(environ, "--parallel", "1", queue_length="2", queue_wait="0.001") as started:
        url = started.ready()["url"]

        def short() -> int:
            return ask(url, body={"messages": QUESTION, "max_tokens": 1}).status

        with ThreadPoolExecutor(3) as pool:
            with busy(url):
                answers = [pool.submit(short) for _ in range(3)]
                started.expect("alert", rule="queue_length", alert="firing")
            assert [answer.result() for answer in answers] == [200] * 3
        started.expect("alert", rule="queue_length", alert="recovered")
        fires_and_recovers(started, "queue_wait")


def test_slow_answers_are_late_first_tokens_and_few_tokens_per_second(environ: dict[str, str]) -> None:
    with watched(environ, time_to_first_token="0.000001", tokens_per_second_baseline="1000000") as started:
        with StreamingClient(started.ready()["url"]) as client:
            for _ in range(3):
                assert "".join(client.stream_chat(QUESTION, temperature=0)) == LONG.answer
        fires_and_recovers(started, "time_to_first_token")
        fired, _ = fires_and_recovers(started, "tokens_per_second")
        assert "the limit is 700000.0 tokens/s" in fired["message"]


MEASURED = ("--concurrency", "1", "--requests", "2", "--repeats", "1", "--output-tokens", "32", "--quiet")


def kept(environ: dict[str, str], name: str) -> Path:
    """Where `bench` has kept a measurement of the demo model under that name."""
    path = Path(environ["HOME"]) / f".local/state/llamastream/baselines/{name}.json"
    done = run(environ, "bench", "--demo", "--kind", "embedded", *MEASURED, "--save", name)
    assert done.returncode == 0, done.stderr
    assert path.exists()
    return path


def test_streams_are_judged_by_a_measurement_that_bench_kept(environ: dict[str, str]) -> None:
    path = kept(environ, "usual")
    report = json.loads(path.read_text())
    measured = report["loads"][0]["percentiles"]["tokens_per_second"]["p50"]["value"]
    with watched(environ, tokens_per_second_baseline="usual", tokens_per_second_share="0.5") as started:
        rules = {each["rule"]: each for each in json.loads(started.command("alerts", "--json").stdout)["rules"]}
        assert rules["tokens_per_second"]["threshold"] == pytest.approx(measured / 2)
        # as on a machine on which it was a hundred times as fast
        report["loads"][0]["percentiles"]["tokens_per_second"]["p50"]["value"] *= 100
        path.write_text(json.dumps(report))
        assert started.command("reload").returncode == 0
        with StreamingClient(started.ready()["url"]) as client:
            for _ in range(3):
                assert "".join(client.stream_chat(QUESTION, temperature=0)) == LONG.answer
        fired, _ = fires_and_recovers(started, "tokens_per_second")
        assert f"the limit is {measured * 50:.1f} tokens/s" in fired["message"]


def test_a_baseline_that_is_not_there_or_of_another_model_ends_serve_before_it_begins(environ: dict[str, str]) -> None:
    def refused(name: str) -> str:
        done = run({**environ, "LLAMASTREAM_ALERTS_TOKENS_PER_SECOND_BASELINE": name}, "serve", "--port", "0")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "there is no baseline 'usual'; known: there are none yet" in refused("usual")
    assert "tokens_per_second_baseline = '-1' from the environment" in refused("-1")
    path = kept(environ, "usual")
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "server": {**report["server"], "model": "big.gguf"}}))
    said = refused("usual")
    assert (
        "tokens_per_second_baseline = 'usual' is of the model 'big.gguf', which is not served here; served: demo"
        in said
    )
    for load in report["loads"]:
        del load["percentiles"]["tokens_per_second"]
    path.write_text(json.dumps(report))
    assert "tokens_per_second_baseline = 'usual' has no tokens per second" in refused("usual")


def test_requests_that_find_no_server_are_an_error_rate(environ: dict[str, str]) -> None:
    with watched(environ, "--restart-delay", "6", "--queue-timeout", "0.2", error_rate="0.5") as started:
        url = started.ready()["url"]
        os.kill(pid(started), signal.SIGKILL)
        started.expect("state", after="restarting")
        answers = [ask(url, body={"messages": QUESTION, "max_tokens": 1}).status for _ in range(3)]
        assert answers == [503] * 3
        fired, _ = fires_and_recovers(started, "error_rate")
        assert "100.0 %, the limit is 50.0 %; 2 of 2 requests failed" in fired["message"].replace("3 of 3", "2 of 2")


def test_mistakes_of_clients_are_no_error_rate(environ: dict[str, str]) -> None:
    with watched(environ, error_rate="0.05", window="60") as started:
        url = started.ready()["url"]
        wrong = {"messages": QUESTION, "max_tokens": 1, "grammar": "root ::= ("}
        assert {ask(url, body=wrong).status for _ in range(5)} == {400}
        rule: dict[str, Any] = {}

        def judged() -> bool:
            rules = json.loads(started.command("alerts", "--json").stdout)["rules"]
            rule.update(next(each for each in rules if each["rule"] == "error_rate"))
            return rule["value"] is not None

        wait_for(judged)
        assert (rule["phase"], rule["value"]) == ("well", 0.0)
        assert not [each for each in started.events if each["event"] == "alert"]


def test_when_all_have_failed_for_good_that_is_still_told(environ: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "messages"
    script = tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + chr(10))")
    command = f"{sys.executable} {script}"
    with watched(environ, "--crash-limit", "1", command=command, group_seconds="60") as started:
        os.kill(pid(started), signal.SIGKILL)
        assert started.end() == 1
    rules = {json.loads(line)["rule"] for line in out.read_text().splitlines()}
    assert rules == {"instance_down", "crash_loop"}


def test_streams_that_had_to_be_mended_are_told(environ: dict[str, str]) -> None:
    with watched(environ, recoveries="1") as started:
        victim = pid(started)
        plain = StreamingClient(started.ready()["url"], recovery="off")
        with plain.stream_completion("a", max_tokens=3000, ignore_eos=True, temperature=0) as stream:
            pieces = iter(stream)
            next(pieces)
            os.kill(victim, signal.SIGKILL)
            for _ in pieces:
                pass
            assert stream.result().finish_reason == "length"
        fires_and_recovers(started, "recoveries")


def test_the_command_shows_the_rules_and_silences_them(environ: dict[str, str]) -> None:
    with watched(environ, memory="1MiB", group_seconds="0.5") as started:
        started.expect("alert", rule="memory", alert="firing")
        shown = started.command("alerts", "--json")
        assert shown.returncode == 3
        metrics = ask(started.ready()["url"], "GET", "/metrics").body.decode()
        assert 'llamastream_alerts_firing{rule="memory"} 1.0' in metrics
        assert 'llamastream_alerts_firing{rule="disk"} 0.0' in metrics
        rules = {each["rule"]: each for each in json.loads(shown.stdout)["rules"]}
        assert (rules["memory"]["phase"], rules["memory"]["subject"]) == ("firing", "demo-0")
        assert (rules["memory_growth"]["phase"], rules["disk"]["phase"]) == ("off", "well")
        lines = started.command("alerts").stdout.splitlines()
        assert all(any(name in line and each["what"] in line for line in lines) for name, each in rules.items())

        assert (
            "instance_down is silent until"
            in started.command("alerts", "silence", "instance_down", "--for", "1h").stdout
        )
        kill(started)
        kill(started)
        started.expect("alert", rule="crash_loop", alert="firing")
        assert not [each for each in started.events if each.get("rule") == "instance_down"]
        assert "silent until" in started.command("alerts").stdout
        for wrong, message in (
            (("silence", "nonsense"), "there is no rule 'nonsense'"),
            (("silence", "disk", "--for", "soon"), "--for 'soon' is not allowed"),
        ):
            done = started.command("alerts", *wrong)
            assert done.returncode == 1
            assert message in done.stderr


def silent_until(started: Serving) -> dict[str, float]:
    rules = json.loads(started.command("alerts", "--json").stdout)["rules"]
    return {each["rule"]: each["silenced_until"] for each in rules if each["silenced_until"] is not None}


def test_silences_outlive_a_fleet_that_is_killed_and_those_with_an_end_one_that_is_stopped(
    environ: dict[str, str],
) -> None:
    port = str(free_ports(1))
    file = Path(environ["HOME"]) / f".local/state/llamastream/silences/serve-{port}.json"
    with watched(environ, port=port, memory="1MiB") as started:
        for words in (("memory", "--for", "1h"), ("disk", "--for", "2d"), ("wedge",)):
            assert started.command("alerts", "silence", *words).returncode == 0
        before = silent_until(started)
        assert set(before) == {"memory", "disk", "wedge"}
        started.process.kill()
        started.end()
    assert file.stat().st_mode & 0o777 == 0o600
    with watched(environ, port=port, memory="1MiB") as started:
        after = silent_until(started)
        assert after == pytest.approx(before, abs=2)
        started.wait_status(lambda found: found["instances"][0]["rss_bytes"] > 1 << 20)
        kill(started)  # so that something is told
        started.expect("alert", rule="instance_down", alert="recovered")
        assert not [each for each in started.events if each.get("rule") == "memory"]
        assert started.command("alerts", "silence", "disk", "--for", "0").returncode == 0
        assert started.command("stop").returncode == 0
        assert started.end() == 0
    with watched(environ, port=port, memory="1MiB") as started:
        assert set(silent_until(started)) == {"memory"}  # `wedge` was silent until the fleet ended
        assert started.command("alerts", "silence", "memory", "--for", "0").returncode == 0
        started.expect("alert", rule="memory", alert="firing")
    assert not file.exists()


def test_a_file_of_silences_that_is_damaged_is_told_of_and_silences_nothing(environ: dict[str, str]) -> None:
    port = str(free_ports(1))
    file = Path(environ["HOME"]) / f".local/state/llamastream/silences/serve-{port}.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"silences": {"memory": "for ever"')
    with watched(environ, memory="1MiB", port=port) as started:
        assert "silences are not taken up" in started.expect("log", level="warning", instance="")["message"]
        started.expect("alert", rule="memory", alert="firing")


def test_a_test_message_is_sent_by_the_fleet_and_each_receiver_is_told_of(environ: dict[str, str]) -> None:
    with watched(environ, command="/nowhere/at/all") as started:
        done = started.command("alerts", "test", "--rule", "disk")
        assert done.returncode == 1
        assert done.stdout.splitlines()[0] == "log: took it"
        assert "command: it cannot be started" in done.stdout
        assert started.expect("alert", alert="test")["rule"] == "disk"


def test_a_dead_receiver_is_told_of_in_the_log_and_disturbs_nothing(environ: dict[str, str]) -> None:
    hook = "http://127.0.0.1:9/SECRET"  # nobody listens there
    with watched(environ, memory="1MiB", webhook=hook, attempts="1") as started:
        lost = started.expect("alert_undelivered")
        assert "the receiver webhook was not told of memory (firing): ConnectionRefusedError" in lost["message"]
        assert ask(started.ready()["url"], body={"messages": QUESTION, "max_tokens": 1}).status == 200
        assert "SECRET" not in json.dumps(started.events)


def test_without_a_fleet_the_test_message_is_sent_from_here(environ: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "message"
    script = tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())")
    done = run({**environ, "LLAMASTREAM_ALERTS_COMMAND": f"{sys.executable} {script}"}, "alerts", "test")
    assert (done.returncode, done.stdout) == (0, "command: took it\n")
    assert json.loads(out.read_text())["kind"] == "test"
    assert run(environ, "alerts").returncode == 1


def test_without_alerts_nothing_is_watched(environ: dict[str, str]) -> None:
    with watched(environ, "--no-alerts", memory="1MiB") as started:
        done = started.command("alerts")
        assert done.returncode == 1
        assert "alerts are switched off" in done.stderr


@pytest.mark.parametrize("receiver", ["webhook", "apprise"])
def test_a_secret_that_cannot_be_read_ends_serve_before_it_begins(environ: dict[str, str], receiver: str) -> None:
    done = run({**environ, f"LLAMASTREAM_ALERTS_{receiver.upper()}": "@/nowhere"}, "serve", "--port", "0")
    assert done.returncode == 1
    assert f"{receiver}: the file '/nowhere' cannot be read" in done.stderr


def test_a_server_of_somebody_else_that_is_gone_is_down_until_it_is_back(environ: dict[str, str]) -> None:
    settings = {f"LLAMASTREAM_ALERTS_{name.upper()}": value for name, value in QUICK.items() if value}
    with launch(EngineOptions(kind="embedded", threads=1)) as engine:
        address = engine.url
        serve = ("--upstream", address, "--port", str(free_ports(1)))
        with serving({**environ, **settings}, *serve) as started:
            started.ready()
            wait_for(lambda: ask(started.ready()["url"], "GET", "/health").status == 200)
            engine.stop()
            fired = started.expect("alert", rule="instance_down", alert="firing")
            assert (fired["instance"], fired["subjects"][0]["detail"]) == ("upstream-0", "it is failed")
            with launch(EngineOptions(kind="embedded", threads=1, port=int(address.rpartition(":")[2]))):
                started.expect("alert", rule="instance_down", alert="recovered")
            started.process.terminate()
            assert started.end() == 0
