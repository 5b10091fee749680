"""Writes packaging/prometheus/ from the declared metrics and alerts: `python docs/generate_prometheus.py`. A test
notices old files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamastream.alerts.rules import Rule, rules_of, value_text
from llamastream.alerts.settings import AlertSettings, RuleName
from llamastream.observe.metrics import METRICS, full_name

FOLDER = Path(__file__).parents[1] / "packaging" / "prometheus"
RULES = FOLDER / "llamastream.rules.yml"
DASHBOARD = FOLDER / "llamastream-dashboard.json"

NAMES = {metric.name: full_name(metric) for metric in METRICS}
NOT_OURS: dict[RuleName, str] = {
    "memory": "as a rule of your own: llamastream_instance_memory_bytes > BYTES",
    "memory_growth": "as a rule of your own: deriv(llamastream_instance_memory_bytes[1h]) * 3600 > BYTES",
    "tokens_per_second": "needs a baseline; see the last panels of the dashboard",
    "disk": "is the node exporter's matter: node_filesystem_avail_bytes",
}
"""Alerts of `serve` that have no rule here with the default settings, and what there is instead."""


def m(name: str, labels: str = "", window: str = "") -> str:
    """A declared metric in a query; raises `KeyError` for another."""
    return NAMES[name] + (f"{{{labels}}}" if labels else "") + (f"[{window}]" if window else "")


def buckets(name: str, share: float, window: str) -> str:
    """A percentile of a histogram."""
    return f"histogram_quantile({share}, sum by (le) (rate({NAMES[name]}_bucket[{window}])))"


# -- rules ----------------------------------------------------------------------------------------------------------


def expression(rule: Rule, settings: AlertSettings) -> str:
    """When Prometheus is to alert, as nearly as its metrics allow."""
    window, at = f"{settings.window:.0f}s", f"{rule.threshold:g}" if rule.threshold is not None else ""
    ends = m("instance_ends", 'after=~"restarting|wedged|failed"', window)
    wedged = m("instance_ends", 'after="wedged"')
    down = m("instance_state", 'state=~"restarting|wedged|failed"')
    failed = m("instance_state", 'state="failed"')
    broken = m("requests", 'finish_reason="error"', window)
    answers = m("requests", 'finish_reason!=""', window)
    known: dict[RuleName, str] = {
        "instance_down": f"{down} == 1",
        "crash_loop": f"increase({ends}) >= {at} or {failed} == 1",
        # a counter that has just appeared has not increased yet
        "wedge": f"increase({wedged}[{window}]) > 0 or ({wedged} unless {wedged} offset {window})",
        "queue_wait": f"{buckets('queue_wait_seconds', 0.95, window)} >= {at}",
        "queue_length": f"{m('queue_length')} >= {at}",
        "time_to_first_token": f"{buckets('time_to_first_token_seconds', 0.95, window)} >= {at}",
        "tokens_per_second": f"{buckets('inter_token_latency_seconds', 0.5, window)} > 1 / {at}",
        "error_rate": f"sum(rate({broken})) / sum(rate({answers})) >= {at}"
        f" and sum(increase({answers})) >= {settings.min_requests}",
        "recoveries": f"sum(increase({m('recoveries', window=window)})) >= {at}",
        "memory": f"{m('instance_memory_bytes')} >= {at}",
        "memory_growth": f"deriv({m('instance_memory_bytes', window='1h')}) * 3600 >= {at}",
    }
    return known[rule.name]


def alert_rules(settings: AlertSettings) -> list[dict[str, Any]]:
    """Those for Prometheus, with the thresholds of the settings."""
    found: list[dict[str, Any]] = [
        {
            "alert": "LlamastreamGone",
            "expr": f"absent({m('build')})",
            "for": "60s",
            "labels": {"severity": "critical"},
            "annotations": {
                "summary": "Nothing is heard of llamastream",
                "description": "No gateway is scraped: it does not run, cannot be reached, or refuses the key.",
            },
        }
    ]
    for rule in rules_of(settings, memory=1):
        if rule.threshold is None or rule.name == "disk" or (rule.name == "memory" and settings.memory is None):
            continue
        name = "Llamastream" + "".join(word.capitalize() for word in rule.name.split("_"))
        limit = "" if rule.unit == "state" else f" The limit is {value_text(rule.threshold, rule.unit)}."
        of_instance = rule.name in ("instance_down", "crash_loop", "wedge", "memory", "memory_growth")
        about = "{{ with $labels.exported_instance }}{{ . }}: {{ end }}" if of_instance else ""
        found.append(
            {
                "alert": name,
                "expr": expression(rule, settings),
                **({"for": f"{rule.hold:.0f}s"} if rule.hold else {}),
                "labels": {"severity": rule.severity},
                "annotations": {
                    "summary": f"{about}{rule.what}",
                    "description": f"{about}{rule.what}.{limit} `llamastream status` and `llamastream logs` say more.",
                },
            }
        )
    return found


def rules_text(settings: AlertSettings | None = None) -> str:
    """The rules file. YAML, of which JSON strings are a part."""
    lines = [
        "# Made by docs/generate_prometheus.py from the declared metrics and the default settings of alerts. Change",
        "# those, then run it again. The label `instance` of a metric is `exported_instance` where Prometheus puts its",
        "# own in its place (`honor_labels: false`, its default). Not here:",
        *(f"#   {name}: {why}" for name, why in NOT_OURS.items()),
        "groups:",
        "  - name: llamastream",
        "    rules:",
    ]
    for rule in alert_rules(settings or AlertSettings()):
        lines.append(f"      - alert: {rule['alert']}")
        lines.append(f"        expr: {json.dumps(rule['expr'])}")
        if "for" in rule:
            lines.append(f"        for: {rule['for']}")
        for section in ("labels", "annotations"):
            lines.append(f"        {section}:")
            lines += [f"          {key}: {json.dumps(value)}" for key, value in rule[section].items()]
    return "\n".join(lines) + "\n"


# -- dashboard ------------------------------------------------------------------------------------------------------

RATE = "$__rate_interval"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panels() -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Title, kind, unit, and queries with their legends."""
    ends = m("instance_ends", 'after=~"restarting|wedged|failed"', RATE)

    def three(name: str) -> list[tuple[str, str]]:
        return [(buckets(name, share, RATE), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]

    def rate(name: str, by: str = "") -> list[tuple[str, str]]:
        grouped = f"sum by ({by}) " if by else "sum "
        return [(f"{grouped}(rate({m(name, '', RATE)}))", f"{{{{{by}}}}}" if by else name.replace("_", " "))]

    cached = f"sum(rate({m('cached_prompt_tokens', '', RATE)})) / sum(rate({m('prompt_tokens', '', RATE)}))"
    failed, answers = (m("requests", chosen, RATE) for chosen in ('finish_reason="error"', 'finish_reason!=""'))
    return [
        ("Instances that take requests", "stat", "short", [(f"sum({m('instances_ready')})", "ready")]),
        ("Requests at work", "stat", "short", [(f"sum({m('requests_active')})", "active")]),
        ("Requests in line", "stat", "short", [(f"sum({m('queue_length')})", "waiting")]),
        ("Tokens per second", "stat", "short", rate("completion_tokens")),
        ("Requests", "timeseries", "reqps", rate("requests", "status")),
        ("Share of failures", "timeseries", "percentunit",
         [(f"(sum(rate({failed})) or vector(0)) / sum(rate({answers}))", "failed")]),
        ("Time to first token", "timeseries", "s", three("time_to_first_token_seconds")),
        ("Between tokens", "timeseries", "s", three("inter_token_latency_seconds")),
        ("Wait for a slot", "timeseries", "s", three("queue_wait_seconds")),
        ("Duration of requests", "timeseries", "s", three("request_duration_seconds")),
        ("Tokens per second by model", "timeseries", "short", rate("completion_tokens", "model")),
        ("Prompts saved by the prompt cache", "timeseries", "percentunit", [(cached, "share")]),
        ("Slots and load", "timeseries", "short",
         [(f"sum({m('slots')})", "slots"), (f"sum({m('requests_active')})", "at work"),
          (f"sum({m('queue_length')})", "in line")]),
        ("Recoveries and retries", "timeseries", "short", [*rate("recoveries", "kind"), *rate("retries")]),
        ("State of instances", "timeseries", "short",
         [(f"{m('instance_state')} == 1", "{{exported_instance}} {{state}}")]),
        ("Unplanned ends", "timeseries", "short",
         [(f"sum by (exported_instance, after) (rate({ends}))", "{{exported_instance}} {{after}}")]),
        ("Memory of instances", "timeseries", "bytes", [(m("instance_memory_bytes"), "{{exported_instance}}")]),
        ("Alerts of serve itself", "timeseries", "short", [(f"{m('alerts_firing')} > 0", "{{rule}}")]),
        ("Decode speed of instances", "timeseries", "short",
         [(m("instance_tokens_per_second"), "{{exported_instance}}")]),
    ]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """For Grafana 10 and later."""
    shown: list[dict[str, Any]] = []
    x = y = 0
    for number, (title, kind, unit, queries) in enumerate(panels(), 1):
        width, height = (6, 4) if kind == "stat" else (12, 8)
        if x + width > 24:
            x, y = 0, y + shown[-1]["gridPos"]["h"]
        shown.append(
            {
                "id": number,
                "type": kind,
                "title": title,
                "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                    for index, (query, legend) in enumerate(queries)
                ],
            }
        )
        x += width
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    return {
        "title": "llamastream",
        "uid": "llamastream",
        "description": "Made by docs/generate_prometheus.py from the declared metrics.",
        "tags": ["llamastream", "llama.cpp"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source]},
        "panels": shown,
    }


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    RULES.write_text(rules_text(), encoding="utf-8")
    DASHBOARD.write_text(dashboard_text(), encoding="utf-8")
    print(f"wrote {RULES} and {DASHBOARD}")
