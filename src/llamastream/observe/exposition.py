"""The text that Prometheus reads, by its own library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from llamastream.observe.metrics import METRICS, PREFIX, Metrics
from llamastream.observe.series import Sample

SOURCES = ("requests", "fleet", "scrape")


def exposition(metrics: Metrics, accept: str) -> tuple[bytes, str]:
    """All metrics as text, and its content type: OpenMetrics or Prometheus' own, as the `Accept` header asks."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(metrics))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class MetricsCollector:
    """The declared metrics with their values, as the library wants them."""

    def __init__(self, metrics: Metrics, sources: Collection[str] = SOURCES) -> None:
        """`sources`: of the metrics that are shown."""
        self._metrics = metrics
        self._sources = sources

    def describe(self) -> list[Metric]:
        return []  # else everything is read once more when this is registered

    def collect(self) -> Iterator[Metric]:
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in self._metrics.scraped():
            samples[sample.name].append(sample)
        series = self._metrics.series
        for metric in METRICS:
            if metric.source not in self._sources:
                continue
            name, labels = PREFIX + metric.name, metric.labels
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(name, metric.help, labels=labels, unit=metric.unit)
                for values, buckets, total in series.histograms(metric.name):
                    histogram.add_metric(values, buckets, total)
                yield histogram
            elif metric.kind == "info":
                info = InfoMetricFamily(name, metric.help)
                info.add_metric((), {label: self._metrics.info.get(label, "") for label in labels})
                yield info
            else:
                found = [(sample.labels, sample.value) for sample in samples[metric.name]]
                if metric.kind == "counter":
                    counter = CounterMetricFamily(name, metric.help, labels=labels)
                    for values, value in found if metric.source == "scrape" else series.counters(metric.name):
                        counter.add_metric(values, value)
                    yield counter
                else:
                    gauge = GaugeMetricFamily(name, metric.help, labels=labels, unit=metric.unit)
                    for values, value in found:
                        gauge.add_metric(values, value)
                    yield gauge
