"""Annotation's figures as Ray metrics, which each node's agent serves to Prometheus.

Ray puts `ray_` before every name, and sends what is set here to the agent of the driver's node
every ten seconds (`RAY_metrics_report_interval_ms`).
"""

from __future__ import annotations

import ray
from ray.util.metrics import Counter, Gauge

from stepwiser.annotation.throughput import Figures

TAGS = ("run", "shard")

COUNTERS = {
    "problems": "stepwiser_annotated_problems_total",
    "units": "stepwiser_annotated_units_total",
    "chunks": "stepwiser_annotated_chunks_total",
    "rollouts": "stepwiser_annotated_rollouts_total",
    "tokens": "stepwiser_annotated_tokens_total",
    "saved_rollouts": "stepwiser_saved_rollouts_total",
}
"""By field of `Figures`. They count earlier starts too, as those fields do."""

GAUGES = {
    "planned_problems": ("stepwiser_planned_problems", "Problems of this shard."),
    "rollouts_per_s": ("stepwiser_rollouts_per_second", "Of units of the last ten minutes."),
    "gpu_hours": ("stepwiser_annotation_gpu_hours", "Held by engines so far."),
    "eta_s": ("stepwiser_annotation_eta_seconds", "To go at the present rate."),
}
"""By field of `Figures`."""


class PrometheusMetrics:
    """Sets the metrics of one run and shard; made after Ray is there."""

    def __init__(self, run: str, shard: str) -> None:
        self._tags = {"run": run, "shard": shard}
        self._counters = {
            field: Counter(name, f"{field.replace('_', ' ')} of finished units.", TAGS)
            for field, name in COUNTERS.items()
        }
        self._counted = dict.fromkeys(COUNTERS, 0)
        self._gauges = {field: Gauge(name, words, TAGS) for field, (name, words) in GAUGES.items()}
        self._engines = Gauge("stepwiser_engines", "Engines that are up.", TAGS)
        self._labels = Gauge(
            "stepwiser_positive_label_ratio", "Of labelled chunks.", (*TAGS, "rule")
        )
        of_engine = (*TAGS, "engine")
        self._tokens = Gauge(
            "stepwiser_engine_tokens_per_second", "Generated, last 30 s.", of_engine
        )
        self._hits = Gauge(
            "stepwiser_engine_cache_hit_ratio",
            "Prompt tokens that the prefix cache held, last 30 s.",
            of_engine,
        )
        self._seen: set[int] = set()

    @property
    def address(self) -> str:
        """Where the agent of this node answers Prometheus."""
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def update(self, figures: Figures) -> None:
        """Bring every metric up to date; takes microseconds and never waits."""
        for field, counter in self._counters.items():
            more = (getattr(figures, field) or 0) - self._counted[field]
            if more > 0:
                counter.inc(more, self._tags)
                self._counted[field] += more
        for field, gauge in self._gauges.items():
            gauge.set(getattr(figures, field), self._tags)
        self._engines.set(len(figures.engines), self._tags)
        for rule, share in figures.labels.items():
            self._labels.set(share, self._tags | {"rule": rule})
        for index, engine in figures.engines.items():
            self._seen.add(index)
            self._tokens.set(engine.tokens_per_s, self._tags | {"engine": str(index)})
            self._hits.set(engine.cache_hits, self._tags | {"engine": str(index)})
        self._forget(self._seen - figures.engines.keys())

    def close(self) -> None:
        """Nothing happens any more: gauges would keep their last values while later stages run."""
        for field in ("rollouts_per_s", "eta_s"):
            self._gauges[field].set(0, self._tags)
        self._engines.set(0, self._tags)
        self._forget(self._seen)

    def _forget(self, gone: set[int]) -> None:
        for index in gone:
            self._tokens.set(0, self._tags | {"engine": str(index)})
            self._hits.set(0, self._tags | {"engine": str(index)})
        self._seen = self._seen - gone
