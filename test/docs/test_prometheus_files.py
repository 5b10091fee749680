"""packaging/prometheus/ is what the code declares, and what Prometheus and Grafana understand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from docs.generate_prometheus import DASHBOARD, NOT_OURS, RULES, alert_rules, dashboard, dashboard_text, rules_text
from llamastream.alerts.settings import RULE_NAMES, AlertSettings
from llamastream.observe.metrics import METRICS, full_name

KNOWN = {full_name(metric): metric for metric in METRICS} | {
    f"{full_name(metric)}_{end}": metric
    for metric in METRICS
    if metric.kind == "histogram"
    for end in ("bucket", "sum")
}
OF_PROMETHEUS = {"le", "exported_instance"}
ALL = AlertSettings(memory="6GiB", memory_growth="500MiB", tokens_per_second_baseline=20.0)


def expressions() -> list[str]:
    of_rules = [rule["expr"] for rule in alert_rules(ALL)]
    return of_rules + [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


@pytest.mark.parametrize(("path", "text"), [(RULES, rules_text()), (DASHBOARD, dashboard_text())])
def test_the_files_are_current(path: Any, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run: .venv/bin/python docs/generate_prometheus.py"


@pytest.mark.parametrize("expression", expressions())
def test_what_is_asked_for_exists(expression: str) -> None:
    names = re.findall(r"llamastream_\w+", expression)
    assert names
    for name in names:
        assert name in KNOWN
    labels = {label for metric in names for label in KNOWN[metric].labels}
    for label in re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression):
        assert label in labels
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels | OF_PROMETHEUS


def test_every_alert_of_serve_has_its_rule_or_a_word_about_it() -> None:
    (group,) = yaml.safe_load(rules_text())["groups"]
    there = {rule["alert"] for rule in group["rules"]}
    for name in RULE_NAMES:
        rule = "Llamastream" + "".join(word.capitalize() for word in name.split("_"))
        assert (rule in there) != (name in NOT_OURS), name
    everything = {rule["alert"] for rule in alert_rules(ALL)}
    assert len(everything) == len(RULE_NAMES)  # without the disk, but with the gateway that is gone


def test_the_file_reads_as_what_was_meant() -> None:
    (group,) = yaml.safe_load(rules_text(ALL))["groups"]
    assert group["rules"] == alert_rules(ALL)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
def test_promtool_finds_nothing_wrong(tmp_path: Any) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(rules_text(ALL))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    panels = [
        {"record": "job:panel", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]
    for number, rule in enumerate(panels):
        rule["record"] += str(number)
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": panels}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
def test_prometheus_fires_at_samples_of_each_fault(tmp_path: Any) -> None:
    shutil.copy(RULES, tmp_path / "rules.yml")
    requests = 'llamastream_requests_total{route="/v1/chat/completions",model="m",'
    waits = 'llamastream_queue_wait_seconds_bucket{le="'
    series = {
        'llamastream_build_info{version="1",python="3"}': "1x20",
        'llamastream_instance_state{exported_instance="demo-0",state="failed"}': "0x5 1x20",
        'llamastream_instance_ends_total{exported_instance="demo-1",after="wedged"}': "_x8 1x20",
        "llamastream_queue_length": "0x5 100x20",
        f'{requests}status="200",finish_reason="stop"}}': "0+10x30",
        f'{requests}status="503",finish_reason="error"}}': "0+5x30",
        'llamastream_recoveries_total{kind="replay"}': "0+3x30",
        f'{waits}30.0"}}': "0x30",
        f'{waits}60.0"}}': "0+5x30",
        f'{waits}+Inf"}}': "0+5x30",
    }
    expected: dict[str, list[str | None]] = {
        "LlamastreamInstanceDown": ["demo-0"], "LlamastreamCrashLoop": ["demo-0"], "LlamastreamWedge": ["demo-1"],
        "LlamastreamQueueLength": [None], "LlamastreamErrorRate": [None], "LlamastreamRecoveries": [None],
        "LlamastreamQueueWait": [None], "LlamastreamGone": [], "LlamastreamTimeToFirstToken": [],
    }  # fmt: skip
    checks = [
        {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)', "eval_time": "10m",
         "exp_samples": [{"labels": "{}", "value": len(about)}]}
        for name, about in expected.items()
    ]  # fmt: skip
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": checks,
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_share_of_failures_is_that_of_serve_itself() -> None:
    """Both are of `finish_reason`, which `RequestServed.failed` reads: no status stands in the query."""
    (rule,) = [each for each in alert_rules(AlertSettings()) if each["alert"] == "LlamastreamErrorRate"]
    asked = set(re.findall(r"llamastream_requests_total\{([^}]*)\}", rule["expr"]))
    assert asked == {'finish_reason="error"', 'finish_reason!=""'}


KINDS_OF_PANELS = {"stat", "timeseries"}
UNITS = {"short", "reqps", "percentunit", "s", "bytes"}
"""Ids of units, of those that Grafana has."""


def cells(place: dict[str, int]) -> set[tuple[int, int]]:
    """Which of Grafana's grid, 24 wide, a panel takes."""
    across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return {(x, y) for x in across for y in down}


def test_the_dashboard_has_what_grafana_wants() -> None:
    shown = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(shown)
    assert "id" not in shown  # of another installation, which would be overwritten
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", shown["uid"])
    assert shown["schemaVersion"] >= 36
    (variable,) = shown["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")


def test_panels_of_the_dashboard_have_ids_of_their_own_and_lie_side_by_side() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        mine = cells(panel["gridPos"])
        assert mine
        assert not mine & taken, panel["title"]
        assert {x for x, _ in mine} <= set(range(24)), panel["title"]
        taken |= mine
    rows = {y for _, y in taken}
    assert rows == set(range(len(rows)))  # no gap between two rows


@pytest.mark.parametrize("panel", dashboard()["panels"], ids=lambda panel: panel["title"])
def test_a_panel_asks_the_chosen_source_and_shows_what_it_gets(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS_OF_PANELS
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(panel["targets"]))]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    for target in panel["targets"]:
        assert target["datasource"] == chosen
        assert set(re.findall(r"\$\w+", target["expr"])) <= {"$__rate_interval"}
        assert target["legendFormat"]
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        if grouped and "le" not in grouped[0]:  # what is summed up is told apart by the legend
            assert named == {label.strip() for label in grouped[0].split(",")}
        else:
            labels = {label for name in re.findall(r"llamastream_\w+", target["expr"]) for label in KNOWN[name].labels}
            assert named <= labels | OF_PROMETHEUS
