"""What Prometheus is told: jobs, queues, and what the workers have done. No key, no name and no text of anybody is in
it."""

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from glassworks.serve.dispatch import Dispatcher

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_COUNTERS = {
    "passes": ("forward passes that several may share", ""),
    "rows": ("rows of those passes: divided by them, the mean company", ""),
    "iterations": ("of the engine", ""),
    "alone_steps": ("passes of what shares none", ""),
    "prompt_tokens": ("computed", ""),
    "new_tokens": ("made", ""),
    "shared_tokens": ("of prompts, taken over from others of the same key", ""),
    "swaps_out": ("keys and values of a request that left the device", ""),
    "swaps_in": ("and came back", ""),
    "cpu_s": ("of the worker's process", "_seconds"),
}
_GAUGES = {
    "resident_bytes": "memory of the worker now",
    "peak_bytes": "the most memory that the worker held",
    "kv_used_bytes": "keys and values on the device",
    "kv_bytes": "that the device has for them",
}


class Metrics:
    """The figures of a service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: Any = {"labelnames": ["model"], "registry": self._registry}
        self.admitted = Counter("glassworks_jobs_admitted", "Jobs that were let in.", **own)
        self.ended = Counter(
            "glassworks_jobs_ended", "Jobs that ended, by how.", ["model", "status"], registry=self._registry
        )
        self.retried = Counter("glassworks_jobs_retried", "Jobs that went back because a worker ended.", **own)
        self.waited = Histogram("glassworks_job_wait_seconds", "From admission to the worker.", buckets=_SECONDS, **own)
        self.took = Histogram("glassworks_job_run_seconds", "From the worker to the end.", buckets=_SECONDS, **own)
        self._lock = threading.Lock()

    def has_ended(self, model: str, status: str) -> None:
        """A job has."""
        self.ended.labels(model, status).inc()

    def watch(self, dispatchers: Mapping[str, "Dispatcher"]) -> None:
        """Tell of these from here on."""
        self._registry.register(_Workers(dispatchers))

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        with self._lock:
            return generate_latest(self._registry)


class _Workers(Collector):
    """What is read when it is asked for."""

    def __init__(self, dispatchers: Mapping[str, "Dispatcher"]) -> None:
        self._dispatchers = dispatchers

    def collect(self) -> Iterable[Metric]:
        for name in ("queued", "running"):
            gauge = GaugeMetricFamily(f"glassworks_jobs_{name}", f"Jobs that are {name}.", labels=["model"])
            for model, dispatcher in self._dispatchers.items():
                gauge.add_metric([model], dispatcher.counts[name])
            yield gauge
        up = GaugeMetricFamily("glassworks_worker_up", "1 if the worker is there.", labels=["model"])
        for model, dispatcher in self._dispatchers.items():
            up.add_metric([model], float(dispatcher.link.is_up))
        yield up
        for name, (text, unit) in _COUNTERS.items():
            spelled = name.removesuffix("_s") + unit if unit else name
            named = f"glassworks_worker_{spelled}"
            yield self._filled(CounterMetricFamily(named, f"{text}; by the worker of now", labels=["model"]), name)
        for name, text in _GAUGES.items():
            yield self._filled(GaugeMetricFamily(f"glassworks_worker_{name}", text, labels=["model"]), name)

    def _filled(self, metric: CounterMetricFamily | GaugeMetricFamily, name: str) -> Metric:
        for model, dispatcher in self._dispatchers.items():
            if name in dispatcher.stats:
                metric.add_metric([model], dispatcher.stats[name])
        return metric
