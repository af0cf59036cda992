"""The coordinator's state as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vitlet._extras import require
from vitlet.partition.cluster.coordinator import Coordinator


class Metrics:
    """Renders the metrics text; the numbers are read from the coordinator when it is asked for.

    Args:
        coordinator: whose metrics.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._prometheus = require("prometheus_client", extra="edge", why="serve metrics")
        require("prometheus_client.core", extra="edge", why="serve metrics")
        self._coordinator = coordinator
        self._registry = self._prometheus.CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._state: dict[str, Any] = {}
        self.content_type: str = self._prometheus.CONTENT_TYPE_LATEST

    def render(self, state: dict[str, Any]) -> bytes:
        """Return the text for a state of `Coordinator.status`."""
        self._state = state
        return bytes(self._prometheus.generate_latest(self._registry))

    def collect(self) -> Iterable[Any]:
        """Give the families, as the registry asks for them."""
        if not self._state:
            return  # the registry asks once for the names alone
        core = self._prometheus.core
        coordinator, state = self._coordinator, self._state
        counts = state["counts"]
        answers = core.CounterMetricFamily(
            "vitlet_answers", "Requests that ended, by how.", labels=["outcome"]
        )
        for outcome in ("complete", "degraded", "unanswered"):
            answers.add_metric([outcome], counts.get(outcome, 0))
        yield answers
        events = core.CounterMetricFamily(
            "vitlet_events", "What else was counted: retries, hedges, dropped frames.",
            labels=["event"],
        )  # fmt: skip
        for name, count in counts.items():
            if name not in ("complete", "degraded", "unanswered"):
                events.add_metric([name], count)
        yield events
        buckets, total = coordinator.latency.histogram()
        yield core.HistogramMetricFamily(
            "vitlet_latency_seconds", "From submission to answer.",
            buckets=[(bound, float(count)) for bound, count in buckets], sum_value=total,
        )  # fmt: skip
        yield core.GaugeMetricFamily(
            "vitlet_pending_requests", "Requests under way.", value=state["pending"]
        )
        held = core.GaugeMetricFamily("vitlet_slot_holders", "Workers per slot.", labels=["slot"])
        for slot in state["slots"]:
            held.add_metric([str(slot["slot"])], len(slot["holders"]))
        yield held
        yield from self._workers(core)

    def _workers(self, core: Any) -> Iterable[Any]:
        table: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
            ("vitlet_worker_queue", "Requests that wait there.", lambda w: w["queue"]),
            ("vitlet_worker_memory_bytes", "Of its process.", lambda w: w["memory"]["process"]),
            ("vitlet_worker_temperature_celsius", "The hottest.", lambda w: w["temperature"]),
            ("vitlet_worker_last_seen_seconds", "Since its report.", lambda w: w["last_seen"]),
            ("vitlet_worker_misses", "Not answered in a row.", lambda w: w["misses"]),
        )
        for name, text, read in table:
            family = core.GaugeMetricFamily(name, text, labels=["device"])
            for worker in self._state["workers"]:
                value = read(worker)
                if value is not None:
                    family.add_metric([worker["device"]], value)
            yield family
