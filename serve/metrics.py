"""The service's figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.access.queue import FairQueue
from serve.schema import JudgeResponse
from serve.solving.schema import SolveResponse

LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what one ingress has answered."""

    def __init__(self, queue: FairQueue) -> None:
        self._registry = registry = CollectorRegistry()
        self._seconds = Histogram(
            "stepwiser_request_seconds",
            "From the first byte to the last, by route.",
            ["route"],
            buckets=LATENCIES_S,
            registry=registry,
        )
        self._requests = Counter(
            "stepwiser_requests", "Answered, by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "stepwiser_tokens", "Read and generated.", ["kind"], registry=registry
        )
        self._verdicts = Counter(
            "stepwiser_verdicts", "Of steps, by verdict.", ["verdict"], registry=registry
        )
        self._version = Gauge("stepwiser_weight_version", "Of the judge.", registry=registry)
        running = Gauge("stepwiser_running", "Solutions being judged.", registry=registry)
        running.set_function(lambda: queue.running)
        waiting = Gauge("stepwiser_waiting", "Solutions waiting for a place.", registry=registry)
        waiting.set_function(lambda: queue.waiting)
        self._queue = queue

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._seconds.labels(route).observe(seconds)
        self._requests.labels(route, str(status)).inc()

    def judged(self, response: JudgeResponse) -> None:
        self._tokens.labels("prompt").inc(response.usage.prompt_tokens)
        self._tokens.labels("judge").inc(response.usage.judge_tokens)
        for step in response.steps:
            self._verdicts.labels(step.verdict or "none").inc()
        self._version.set(response.model.weight_version)

    def solved(self, response: SolveResponse) -> None:
        usage = response.usage
        self._tokens.labels("policy").inc(usage.accepted_tokens + usage.rejected_tokens)
        self._tokens.labels("judge").inc(usage.judge_tokens)

    def text(self) -> bytes:
        """In the exposition format of Prometheus."""
        return generate_latest(self._registry)
