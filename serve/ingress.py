"""The routes: what comes in over HTTP, checked, handed to a replica, and answered in one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from serve.access.gate import Gate
from serve.access.keys import Key, KeyRing
from serve.access.owed import OwedAnswers
from serve.access.queue import FairQueue
from serve.dispatch import Replicas
from serve.errors import ApiError, ErrorBody, error_response, failure_of_status
from serve.event_stream import EventStream
from serve.judging.scores import reduce_scores
from serve.metrics import Metrics
from serve.page.files import PageFiles, page_response
from serve.page.labelled_run import MOST_SOLUTIONS, LabelledRun, LabelledSolutions, Outcome
from serve.protocols.chat import ChatRequest, completion_body
from serve.protocols.pooling import (
    PairRequest,
    PoolingRequest,
    classify_body,
    pooling_body,
    score_body,
)
from serve.protocols.rewards import OpenRlhfRequest, SlimeRequest, openrlhf_body
from serve.schema import (
    Health,
    JudgeBatch,
    JudgeBatchResponse,
    JudgeRequest,
    JudgeResponse,
    ModelInfo,
    Reduction,
    ScoreRequest,
    ScoreResponse,
    Version,
    explain,
)
from serve.solving.schema import SolveRequest, SolveResponse
from serve.work import Work
from stepwiser import __version__
from stepwiser.errors import UserError


@dataclass(frozen=True)
class IngressOptions:
    """What the ingress needs beside a way to the replicas."""

    places: int
    """Solutions that are judged at a time, all replicas together."""
    max_waiting: int
    """Solutions that may wait for a place."""
    max_body_bytes: int
    deadline_s: float
    keys_file: str | None = None
    api_token: str | None = field(default=None, repr=False)
    """A key without limits, beside those of the file."""
    allowed_origins: tuple[str, ...] = ()
    """Pages of other servers that a browser may call this one from."""
    run_dir: str | None = None
    """Of the run whose annotated solutions are shown."""
    policy: str | None = None
    """Name of the model that solves."""


router = APIRouter(
    responses={status: {"model": ErrorBody} for status in (400, 401, 413, 422, 429, 500, 503, 504)}
)
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""Beside JSON, where `stream` asks for them; OpenAPI 3.1 has no word for what an event holds."""
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody}}
ReductionOption = Annotated[
    Reduction, Query(description="How the scores of the steps become one number.")
]


def _work(request: Request) -> Work:
    return request.app.state.work


def _key(request: Request) -> Key | None:
    return request.state.key


WorkOf = Annotated[Work, Depends(_work)]
KeyOf = Annotated[Key | None, Depends(_key)]


# --- judging --------------------------------------------------------------------------------------


@router.post("/v1/judge", response_model=JudgeResponse, responses=EVENTS)
async def judge(body: JudgeRequest, work: WorkOf, key: KeyOf) -> Any:
    """Judge every step of a solution; with `stream` as server-sent events."""
    if body.stream:
        return EventStream(work.judge_events(body, key), work.owed, work.seconds_of(body))
    return await work.judge(body, key)


@router.post("/v1/judge/batch")
async def judge_batch(
    body: JudgeBatch, request: Request, work: WorkOf, key: KeyOf
) -> JudgeBatchResponse:
    """Judge many solutions; each succeeds or fails by itself."""
    items = await work.batch(body.items, key, request.state.request_id)
    return JudgeBatchResponse(items=items, failed=sum(item.error is not None for item in items))


@router.post("/v1/score")
async def score(body: ScoreRequest, work: WorkOf, key: KeyOf) -> ScoreResponse:
    """One number for a solution."""
    return await work.score(body, body.reduction, key)


@router.post("/v1/solve", response_model=SolveResponse, responses=EVENTS | MISSING)
async def solve(body: SolveRequest, work: WorkOf, key: KeyOf) -> Any:
    """Solve a problem by chunk-reset; with `stream` as server-sent events."""
    if body.stream:
        return EventStream(work.solve_events(body, key), work.owed, work.seconds_of(body))
    return await work.solve(body, key)


@router.post("/v1/chat/completions", responses=EVENTS)
async def chat(body: ChatRequest, work: WorkOf, key: KeyOf) -> Any:
    """OpenAI's chat completions over the judge's model."""
    if body.stream:
        return EventStream(work.chat_events(body, key), work.owed, work.deadline_s, named=False)
    return completion_body(await work.chat(body, key))


# --- rewards for trainers -------------------------------------------------------------------------


@router.post("/v1/rewards/openrlhf")
async def openrlhf(
    body: OpenRlhfRequest, work: WorkOf, key: KeyOf, reduction: ReductionOption = "mean"
) -> dict[str, Any]:
    """OpenRLHF's remote reward model."""
    scores, responses = await work.score_all(body.solutions(), key)
    numbers = [reduce_scores(row, reduction) for row in scores]
    return openrlhf_body(numbers, [response.first_negative for response in responses])


@router.post("/v1/rewards/slime")
async def slime(
    body: SlimeRequest, work: WorkOf, key: KeyOf, reduction: ReductionOption = "mean"
) -> float:
    """The reward of slime's `remote_rm`: a bare number."""
    (scores,), _ = await work.score_all([body.solution()], key)
    return reduce_scores(scores, reduction)


@router.post("/pooling")
async def pooling(body: PoolingRequest, work: WorkOf, key: KeyOf) -> dict[str, Any]:
    """vLLM's `/pooling` of a process reward model: wrong and right of every step."""
    return pooling_body(*await work.score_all(body.solutions(), key))


@router.post("/classify")
async def classify(
    body: PoolingRequest, work: WorkOf, key: KeyOf, reduction: ReductionOption = "mean"
) -> dict[str, Any]:
    """vLLM's `/classify` of a reward model: wrong and right of every solution."""
    scores, responses = await work.score_all(body.solutions(), key)
    return classify_body([reduce_scores(row, reduction) for row in scores], responses)


@router.post("/score")
async def score_pairs(
    body: PairRequest, work: WorkOf, key: KeyOf, reduction: ReductionOption = "mean"
) -> dict[str, Any]:
    """vLLM's `/score` of a cross-encoder: one number for a problem and a solution."""
    scores, responses = await work.score_all(body.solutions(), key)
    return score_body([reduce_scores(row, reduction) for row in scores], responses)


# --- the server -----------------------------------------------------------------------------------


@router.get("/v1/models")
async def models(work: WorkOf) -> dict[str, Any]:
    """The one model that is served, in the shape OpenAI clients expect."""
    card = await work.card()
    entry = {
        "id": card.model.name,
        "object": "model",
        "created": 0,
        "owned_by": "stepwiser",
        "max_model_len": card.max_prompt_tokens + card.max_judge_tokens,
        "weight_version": card.model.weight_version,
        "max_prompt_tokens": card.max_prompt_tokens,
        "max_judge_tokens": card.max_judge_tokens,
    }
    return {"object": "list", "data": [entry]}


@router.get("/version")
async def version(work: WorkOf) -> Version:
    """Of the package, of the weights, and what Positive means to them."""
    return Version(version=__version__, judge=await work.card())


async def _health(request: Request) -> Health:
    model: ModelInfo | None = None
    failed: str | None = None
    try:
        model = (await _work(request).card()).model
    except ApiError as error:
        failed = str(error)
    if failed is None and _work(request).queue.closed:
        failed = "about to stop"
    run: LabelledRun | None = request.app.state.run
    return Health(
        ready=failed is None,
        model=model,
        version=__version__,
        token_required=request.app.state.keys.required,
        policy=request.app.state.policy,
        run=None if run is None else run.name,
        error=failed,
    )


@router.get("/health")
async def health(request: Request) -> Health:
    """200 as long as the server is there; `ready` says whether a judge answers."""
    return await _health(request)


@router.get("/ready", response_model=Health)
async def ready(request: Request) -> JSONResponse:
    """200 when a judge answers, 503 with the reason when none does or the server is to stop."""
    health = await _health(request)
    return JSONResponse(health.model_dump(), status_code=200 if health.ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(work: WorkOf) -> Response:
    """For Prometheus."""
    return Response(work.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/run", responses=MISSING)
async def labelled_run(
    request: Request,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_SOLUTIONS)] = 10,
    outcome: Annotated[Outcome, Query(description="Of the final answer.")] = "any",
) -> LabelledSolutions:
    """Solutions of an annotated run: chunks, their values and the rollouts behind these."""
    run: LabelledRun | None = request.app.state.run
    if run is None:
        raise ApiError("not_found", "this server shows no run: start it with serve.run=DIRECTORY")
    return await asyncio.to_thread(run.solutions, offset, limit, outcome)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """For people; its files are under /page."""
    return page_response()


# --- the application ------------------------------------------------------------------------------


def make_api(
    options: IngressOptions,
    replicas: Replicas,
    new_id: Callable[[], str],
    policies: Replicas | None = None,
) -> FastAPI:
    """The ASGI application of one ingress. Raises UserError for a key file that cannot be read."""
    keys = KeyRing(Path(options.keys_file) if options.keys_file else None, options.api_token)
    queue = FairQueue(options.places, options.max_waiting)
    owed = OwedAnswers()
    metrics = Metrics(queue)
    api = FastAPI(
        title="StepWiser judge",
        version=__version__,
        description="A generative judge of reasoning steps.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            RequestValidationError: _invalid,
            UserError: _unusable,
            ApiError: _failed,
            HTTPException: _refused,
        },
    )
    api.state.keys = keys
    api.state.policy = options.policy
    api.state.run = None if options.run_dir is None else LabelledRun(Path(options.run_dir))
    api.state.work = Work(replicas, queue, owed, metrics, options.deadline_s, policies)
    api.include_router(router)
    api.mount("/page", PageFiles())
    api.add_middleware(
        Gate,
        keys=keys,
        owed=owed,
        max_body_bytes=options.max_body_bytes,
        observer=metrics,
        new_id=new_id,
    )
    if options.allowed_origins:
        # Outside the gate: a browser asks with a request of its own, without the key.
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return api


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    route = request.scope.get("route")
    fields = getattr(getattr(route, "body_field", None), "field_info", None)
    known = list(getattr(getattr(fields, "annotation", None), "model_fields", {}))
    message, param = explain(error.errors(), known)
    return _answer(request, ApiError("invalid_request", message, param))


async def _unusable(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, ApiError("invalid_request", str(error)))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    failure = failure_of_status(error.status_code, str(error.detail))
    if failure.type == "not_found":
        detail = (
            f"{request.method} {request.url.path[:200]}: no such route; /openapi.json lists them"
        )
        failure = failure_of_status(404, detail)
    response = error_response(failure, request.state.request_id)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _answer(request: Request, error: ApiError) -> JSONResponse:
    return error_response(error.failure, request.state.request_id)
