"""The judge over HTTP: a Ray Serve application whose replicas hold the engines themselves."""

from __future__ import annotations

import hmac
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from actors.engine.engine import Engine, EngineFailure, EngineOptions
from serve.schema import Health, JudgeRequest, JudgeResponse, ModelInfo, explain
from serve.service import JudgeService
from stepwiser import __version__
from stepwiser.config import PromptConfig
from stepwiser.config.models import ServeConfig
from stepwiser.errors import UserError
from stepwiser.generation import Sampling
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.prompt_format import PromptFormat

APP_NAME = "stepwiser-judge"
_TRACEBACK_END = re.compile(r"[\w.]*(Error|Exception|Failure)\b.*: ")
"""The last line of a traceback."""
TOKEN_VARIABLE = "STEPWISER_API_TOKEN"


def _token_of_environment() -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class ServeOptions:
    """Everything a replica needs."""

    engine: EngineOptions
    """Its model is the judge: a Hugging Face name, or a directory that every node can reach."""
    prompts: PromptConfig
    serve: ServeConfig
    max_tokens: int
    """Longest analysis and verdict."""
    cpus: float = 1.0
    gpus: float = 0.0
    """Ray resources of one replica."""
    api_token: str | None = field(default_factory=_token_of_environment, repr=False)
    """Bearer token that /v1 asks for; None leaves it open. Default: STEPWISER_API_TOKEN."""

    def __post_init__(self) -> None:
        if self.max_tokens >= self.engine.max_model_len:
            raise UserError(
                f"judge_max_tokens={self.max_tokens} leaves no room for a prompt within "
                f"engine.max_model_len={self.engine.max_model_len}: lower the former or raise the "
                "latter"
            )


class Refused(Exception):
    """A request without the right bearer token."""


api = FastAPI(title="StepWiser judge", version=__version__, docs_url=None, redoc_url=None)


def _error(status: int, kind: str, message: str, **headers: str) -> JSONResponse:
    body = {"error": {"type": kind, "message": message}}
    return JSONResponse(body, status_code=status, headers=headers)


@api.exception_handler(RequestValidationError)
async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return _error(422, "invalid_request", explain(error.errors()))


@api.exception_handler(UserError)
async def _unusable(_: Request, error: UserError) -> JSONResponse:
    return _error(422, "invalid_request", str(error))


@api.exception_handler(EngineFailure)
async def _failed(_: Request, error: EngineFailure) -> JSONResponse:
    return _error(503, "engine_failed", str(error))


@api.exception_handler(Refused)
async def _refused(_: Request, error: Refused) -> JSONResponse:
    return _error(401, "unauthorized", str(error), **{"WWW-Authenticate": "Bearer"})


class JudgeServer:
    """One replica: an engine, its judge and the routes."""

    def __init__(self, options: ServeOptions) -> None:
        self._token = options.api_token
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._engine = Engine(options.engine)
        self._engine.wait_ready()
        model = options.engine.model
        name = Path(model).resolve().name if Path(model).is_dir() else model
        trust = options.engine.trust_remote_code
        self._service = JudgeService(
            judge=GenerativeJudge(
                generator=self._engine,
                prompts=PromptFormat.from_model_dir(model, options.prompts, trust),
                sampling=Sampling(options.max_tokens, n=options.serve.votes),
            ),
            max_model_len=options.engine.max_model_len,
            model=ModelInfo(name=name, weight_version=self._engine.weight_version),
        )

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica whose engine has died."""
        await self._engine.check_health()

    def _authorize(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(token.strip().encode(), self._token.encode())
        if scheme.lower() != "bearer" or not known:
            raise Refused(
                "missing or wrong token: send the header `Authorization: Bearer <token>` with the "
                f"value of {TOKEN_VARIABLE} on the server"
            )

    @api.post("/v1/judge")
    async def judge(self, body: JudgeRequest, request: Request) -> JudgeResponse:
        """Judge every step of a solution."""
        self._authorize(request)
        return await self._service.answer(body)

    @api.get("/v1/models")
    async def models(self, request: Request) -> dict[str, Any]:
        """The one model that is served, in the shape OpenAI clients expect."""
        self._authorize(request)
        model = self._service.model
        entry = {"id": model.name, "object": "model", "owned_by": "stepwiser"}
        limits = {
            "weight_version": model.weight_version,
            "max_prompt_tokens": self._service.max_prompt_tokens,
            "max_judge_tokens": self._service.judge.sampling.max_tokens,
        }
        return {"object": "list", "data": [entry | limits]}

    @api.get("/health")
    async def health(self) -> JSONResponse:
        """200 when the engine answers, 503 with its error when it does not."""
        problem = None
        try:
            await self._engine.check_health()
        except Exception as error:  # reported, not swallowed: it is the body of the 503
            problem = f"{type(error).__name__}: {error}"
        health = Health(
            ready=problem is None,
            model=self._service.model,
            version=__version__,
            token_required=self._token is not None,
            error=problem,
        )
        return JSONResponse(health.model_dump(), status_code=200 if problem is None else 503)

    @api.get("/", response_class=HTMLResponse)
    async def page(self) -> str:
        """Paste a solution, see its steps coloured by score."""
        return self._page


_JudgeIngress = serve.ingress(api)(JudgeServer)


def build_app(options: ServeOptions) -> serve.Application:
    """The application, not yet running."""
    deployment = serve.deployment(
        name="judge",
        max_constructor_retry_count=2,
        # Three failed checks replace a replica; its engine answers them between two steps.
        health_check_period_s=2,
        num_replicas=options.serve.replicas,
        # Serve's own default of 5 would starve the engine's batches.
        max_ongoing_requests=options.serve.max_ongoing_requests,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    return deployment(_JudgeIngress).bind(options)


def run(options: ServeOptions, blocking: bool = True) -> str:
    """Serve on the Ray cluster of this process (started here if there is none); return the URL.

    When blocking, Ctrl-C takes the service down and returns. Raises UserError for a port that is
    taken and for a cluster whose Serve already listens somewhere else.
    """
    app = build_app(options)
    host, port = options.serve.host, options.serve.port
    if not ray.is_initialized():
        ray.init()
    _start_http(host, port)
    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        reason = _why_not_started() or str(error)
        serve.shutdown()
        raise UserError(f"the judge {options.engine.model} did not start: {reason}") from error
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    print(f"serving {options.engine.model} at {url} (Ctrl-C stops it)", flush=True)
    if blocking:
        try:
            while True:
                time.sleep(1.0)
        except KeyboardInterrupt:
            print("stopping", flush=True)
        finally:
            serve.shutdown()
    return url


def _start_http(host: str, port: int) -> None:
    """Start Serve's proxies on an address, or find them there."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        _require_free(host, port)
        serve.start(http_options=HTTPOptions(host=host, port=port))
        return
    running = client.http_config
    if (running.host, running.port) != (host, port):
        # Serve would only log a warning and keep the old address.
        raise UserError(
            f"serve.host={host} serve.port={port}: this cluster's Serve already listens on "
            f"{running.host}:{running.port}; use that address, or shut Serve down first "
            "(`serve shutdown`)"
        )


def _why_not_started() -> str:
    """What the replica's constructor raised; Serve's own exception only names the deployment."""
    application = serve.status().applications[APP_NAME]
    messages = [status.message for status in application.deployments.values()]
    lines = [line.strip() for message in messages for line in message.splitlines()]
    return next((line for line in reversed(lines) if _TRACEBACK_END.match(line)), " ".join(lines))


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"serve.host={host} serve.port={port}: cannot listen there ({error.strerror}); "
                "choose another with serve.port=…"
            ) from error
