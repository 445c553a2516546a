"""The judge over HTTP."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import Positive, Section, require_at_least


class ServeConfig(Section):
    """The judge over HTTP: where, how many replicas, what is refused."""

    model: LocalPlace | None = Field(
        None,
        description="Judge: a folder or a name on the Hub, asked as its card says; null: the one"
        " that the run has trained.",
    )
    host: str = Field("127.0.0.1", description="Any other than this machine's own needs keys.")
    port: int = Field(8000, ge=0, le=65535)
    keys: LocalPlace | None = Field(
        None, description="Key file of `stepwiser keys`; the ingress reads it every second."
    )
    replicas: Positive = Field(1, description="Engines; the least of them with max_replicas.")
    max_replicas: Positive | None = Field(
        None, description="Add replicas up to so many while requests wait; null: none."
    )
    votes: Positive = Field(1, description="Judgments of a step where a request says nothing.")
    max_ongoing_requests: Positive = Field(64, description="Solutions a replica judges at a time.")
    max_queued_requests: Positive = Field(
        256, description="Solutions that wait for a replica; more are refused with 429."
    )
    max_body_kb: Positive = Field(1024, description="Largest body of a request, in KiB.")
    deadline_s: float = Field(120.0, gt=0, description="Longest time for an answer; then 504.")
    drain_s: float = Field(
        30.0, gt=0, description="After SIGTERM, longest time to answer what was accepted."
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="Pages of other servers (https://example.org) that may call this one (CORS).",
    )

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_replicas is not None:
            require_at_least(
                "serve.max_replicas", self.max_replicas, "serve.replicas", self.replicas
            )
        return self
