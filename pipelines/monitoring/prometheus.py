"""Figures of annotation and training as Ray metrics, which each node's agent serves to Prometheus.

Ray puts `ray_` before every name, and sends what is set here to the agent of the driver's node
every ten seconds (`RAY_metrics_report_interval_ms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from math import isnan, nan
from typing import Any, Self

import ray
from ray.util.metrics import Counter, Gauge

from stepwiser.annotation.throughput import Figures
from stepwiser.run.periodic import repeating

TAGS = ("run", "shard")
SET_AGAIN_S = 5.0
"""Between two times that the figures of a step are said."""

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
    "units_left": ("stepwiser_units_left", "Units of this shard that are not finished."),
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
        self._queues = tuple(
            Gauge(f"stepwiser_engine_{name}_sequences", words, of_engine)
            for name, words in (
                ("running", "That the engine decodes."),
                ("waiting", "That wait in the engine."),
            )
        )
        self._seen: set[int] = set()

    @property
    def address(self) -> str:
        """Where the agent of this node answers Prometheus."""
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def update(self, figures: Figures, queues: Mapping[int, tuple[int, int]]) -> None:
        """Bring every metric up to date; takes microseconds and never waits.

        ``queues``: sequences that run and that wait, by engine.
        """
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
        for index, lengths in queues.items():
            if index in figures.engines:
                for gauge, length in zip(self._queues, lengths, strict=True):
                    gauge.set(length, self._tags | {"engine": str(index)})
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
            for gauge in self._queues:
                gauge.set(0, self._tags | {"engine": str(index)})
        self._seen = self._seen - gone


LEARNER = {
    "step": ("stepwiser_train_step", "Training steps that are done."),
    "reward": ("stepwiser_train_reward", "Mean of the last step."),
    "response_length": ("stepwiser_train_response_tokens", "Mean of the last step's answers."),
    "share_no_verdict": ("stepwiser_train_no_verdict_ratio", "Of the last step's answers."),
    "entropy": ("stepwiser_train_entropy_nats", "Of the last step's tokens."),
    "logprob_gap": ("stepwiser_train_logprob_gap", "Between engine and learner, same weights."),
    "seconds_step": ("stepwiser_train_step_seconds", "Of the last step."),
    "engine_idle": ("stepwiser_train_engine_idle_ratio", "Of the last step."),
    "learner_idle": ("stepwiser_train_learner_idle_ratio", "Of the last step."),
    "staleness_mean": (
        "stepwiser_train_staleness_versions",
        "Mean age of the last step's samples.",
    ),
}
"""By field of a line of `metrics.jsonl`; one that a line lacks keeps its value."""


class LearnerMetrics:
    """Sets the metrics of one training from entering to leaving; made after Ray is there."""

    def __init__(self, run: str, steps: int) -> None:
        self._tags = {"run": run}
        self._gauges = {field: Gauge(name, w, ("run",)) for field, (name, w) in LEARNER.items()}
        self._planned = Gauge("stepwiser_train_planned_steps", "Of this training.", ("run",))
        self._steps = steps
        self._values: dict[str, float] = {}
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        # A step may take an hour, and Ray forgets a gauge that is not set again within half a
        # minute.
        self._exits.enter_context(repeating(self._set, SET_AGAIN_S, "learner-metrics"))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def update(self, row: Mapping[str, Any]) -> None:
        """Take in the line of a step that has been trained."""
        known = {name: v for name, v in row.items() if isinstance(v, int | float)}
        if "step" in known:
            known["step"] += 1
        self._values = {f: known.get(f, self._values.get(f, nan)) for f in LEARNER}
        self._set()

    def _set(self) -> None:
        self._planned.set(self._steps, self._tags)
        for field, value in self._values.items():
            if not isnan(value):
                self._gauges[field].set(value, self._tags)
