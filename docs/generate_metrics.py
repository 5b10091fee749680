"""Writes docs/metrics.md from the declarations: `python docs/generate_metrics.py`. A test notices an old page."""

from __future__ import annotations

from pathlib import Path

from llamastream.observe.metrics import METRICS, full_name
from llamastream.observe.series import Metric

PAGE = Path(__file__).with_name("metrics.md")

HEAD = """\
# Metrics

<!-- Made by docs/generate_metrics.py from the declarations in the code. Change those, then run it again. -->

The gateway tells Prometheus at `/metrics`, in its own text form or as OpenMetrics, whichever the scraper asks for.
Where there are API keys, it needs one with the scope `metrics`:

```yaml
scrape_configs:
  - job_name: llamastream
    authorization:
      credentials_file: /etc/prometheus/llamastream.key
    static_configs:
      - targets: ["127.0.0.1:8080"]
```

Times are in seconds, sizes in bytes. Labels have few values, whatever clients write: `route` is one of the gateway's
routes or `other`, `model` one of the models that exist or `other`, `instance` one of the fleet's. Requests are counted
when they are over; nothing is counted for single chunks, so latencies between tokens appear with the end of a stream.

"""

TAIL = """
Tokens per second: `rate(llamastream_completion_tokens_total[1m])`. The share of prompts that the prompt cache saves:
`rate(llamastream_cached_prompt_tokens_total[5m]) / rate(llamastream_prompt_tokens_total[5m])`. The 95th percentile of
the time to first token:
`histogram_quantile(0.95, sum by (le) (rate(llamastream_time_to_first_token_seconds_bucket[5m])))`.
"""


def page() -> str:
    lines = ["| Metric | Type | Labels | What it is |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(metric))} |" for metric in METRICS]
    return HEAD + "\n".join(lines) + "\n" + TAIL


def cells(metric: Metric) -> tuple[str, ...]:
    labels = metric.labels or (("version", "python") if metric.kind == "info" else ())
    return (
        f"`{full_name(metric)}`",
        metric.kind,
        ", ".join(f"`{label}`" for label in labels),
        metric.help.replace("|", "\\|"),
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
