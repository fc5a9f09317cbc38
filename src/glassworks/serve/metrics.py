"""What Prometheus is told: jobs, queues, and what the workers have done. No key, no name and no text of anybody is in
it."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from glassworks.serve.dispatch import Dispatcher

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_COUNTERS = {
    "passes": "forward passes that several may share",
    "rows": "rows of those passes: divided by them, the mean company",
    "iterations": "of the engine",
    "alone_passes": "of what shares none",
    "cpu_s": "of the worker's process",
}
"""What a worker says of itself -> what it is."""
_ENGINE_COUNTERS = {
    "prompt_tokens": "computed",
    "new_tokens": "made",
    "shared_tokens": "of prompts, taken over from others of the same key",
    "swaps_out": "keys and values of a request that left the device",
    "swaps_in": "and came back",
    "drops": "and were forgotten, to be computed again",
}
_GAUGES = {"resident_bytes": "memory of the worker now", "peak_bytes": "the most memory that the worker held"}


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
        for name, text in _COUNTERS.items():
            yield self._counted(name, text, lambda stats, name=name: stats.get(name))  # type: ignore[misc]
        for name, text in _ENGINE_COUNTERS.items():
            yield self._counted(name, text, lambda stats, name=name: stats.get("engine", {}).get(name))  # type: ignore[misc]
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"glassworks_worker_{name}", text, labels=["model"])
            for model, dispatcher in self._dispatchers.items():
                if name in dispatcher.stats:
                    gauge.add_metric([model], dispatcher.stats[name])
            yield gauge
        yield self._memory()

    def _counted(self, name: str, text: str, of: Callable[[dict[str, Any]], float | None]) -> Metric:
        spelled = name.removesuffix("_s") + "_seconds" if name.endswith("_s") else name
        counter = CounterMetricFamily(f"glassworks_worker_{spelled}", f"{text}; by the worker of now", labels=["model"])
        for model, dispatcher in self._dispatchers.items():
            value = of(dispatcher.stats)
            if value is not None:
                counter.add_metric([model], value)
        return counter

    def _memory(self) -> Metric:
        gauge = GaugeMetricFamily(
            "glassworks_worker_kv_bytes", "keys, values and saves, used and allowed", labels=["model", "tier", "what"]
        )
        for model, dispatcher in self._dispatchers.items():
            for tier, (used, allowed) in dispatcher.stats.get("engine", {}).get("bytes", {}).items():
                gauge.add_metric([model, tier, "used"], used)
                gauge.add_metric([model, tier, "allowed"], allowed)
        return gauge
