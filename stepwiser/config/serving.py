"""The judge over HTTP."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import Judgements, Positive, Section, Unit, require_at_least

Replicas = Annotated[Positive, Unit("replicas")]
Duration = Annotated[float, Field(gt=0), Unit("seconds")]


class ServeConfig(Section):
    """The judge over HTTP: which, where, how many replicas, and what is refused."""

    model: LocalPlace | None = Field(
        None,
        description="Judge: a folder or a name on the Hub, asked as its card says; null: the one"
        " that the run has trained.",
        examples=["/models/judge"],
    )
    policy: LocalPlace | None = Field(
        None,
        description="Model that writes in chunks, for `/v1/solve` (settings: `solve.*`): a folder"
        " or a name on the Hub; null: none.",
        examples=["runs/embedded/models/policy"],
    )
    run: LocalPlace | None = Field(
        None,
        description="Run directory whose annotated solutions the page and `/v1/run` show.",
        examples=["runs/embedded"],
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; `0.0.0.0`: on all of the machine's, which wants keys.",
        examples=["0.0.0.0"],
    )
    port: Annotated[int, Unit("TCP port")] = Field(
        8000, ge=0, le=65535, description="Port to listen on.", examples=[8080]
    )
    keys: LocalPlace | None = Field(
        None,
        description="File of `stepwiser keys add`; without one, and without STEPWISER_API_TOKEN,"
        " nobody is asked for a key.",
        examples=["keys.json"],
    )
    replicas: Replicas = Field(
        1, description="Processes that judge, each with an engine of its own.", examples=[2]
    )
    max_replicas: Replicas | None = Field(
        None,
        description="Add replicas up to so many while the present ones are over half full; null:"
        " none.",
        examples=[4],
    )
    votes: Judgements = Field(
        1, description="Judgements of a step where a request does not say how many.", examples=[8]
    )
    max_ongoing_requests: Annotated[Positive, Unit("solutions of a replica")] = Field(
        64, description="Solutions that a replica judges at once; others wait.", examples=[256]
    )
    max_queued_requests: Annotated[Positive, Unit("solutions")] = Field(
        256, description="Solutions that wait; more are refused with 429.", examples=[1024]
    )
    max_body_kb: Annotated[Positive, Unit("KiB")] = Field(
        1024, description="Largest body of a request; larger ones get 413.", examples=[8192]
    )
    deadline_s: Duration = Field(
        120.0, description="Longest time for an answer, the wait included; then 504.", examples=[30]
    )
    drain_s: Duration = Field(
        30.0,
        description="Longest time, after SIGTERM, to answer what was accepted.",
        examples=[120],
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="Other servers whose pages may call this one from a browser (CORS).",
        examples=[["https://example.org"]],
    )

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_replicas is not None:
            require_at_least(
                "serve.max_replicas", self.max_replicas, "serve.replicas", self.replicas
            )
        return self
