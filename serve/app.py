"""The application: what is deployed, started, drained and taken down."""

from __future__ import annotations

import contextlib
import inspect
import ipaddress
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.context import _get_global_client, _get_serve_request_context
from ray.serve.schema import LoggingConfig

from actors.engine.engine import EngineOptions
from actors.ray_messages import hush
from serve.access.keys import read_keys
from serve.access.owed import GIVE_UP_S
from serve.dispatch import Replicas
from serve.ingress import IngressOptions, make_api
from serve.judging.replica import JudgeReplica, ReplicaOptions, served_name
from serve.page.labelled_run import LabelledRun
from serve.solving.replica import PolicyOptions, PolicyReplica
from stepwiser.config import PromptConfig
from stepwiser.config.serving import ServeConfig
from stepwiser.errors import UserError

APP_NAME = "stepwiser-judge"
JUDGE = "judge"
POLICY = "policy"
INGRESS = "ingress"
TOKEN_VARIABLE = "STEPWISER_API_TOKEN"
STOP_S = 10.0
"""For the proxies to send what the ingress has answered, and for a busy machine to tell of it."""
HAND_OVER_S = 1.0
"""How long an ingress that is replaced still answers: until the proxies know the new one."""
_TRACEBACK_END = re.compile(r"[\w.]*(Error|Exception|Failure)\b.*: ")
"""The last line of a traceback."""
_MOST_CONNECTIONS = 10_000
"""Of the ingress, which refuses on its own terms long before."""


def _token_of_environment() -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class ServeOptions:
    """Everything the application needs."""

    engine: EngineOptions
    """Its model is the judge: a Hugging Face name, or a directory that every node can reach."""
    prompts: PromptConfig
    serve: ServeConfig
    max_tokens: int
    """Longest analysis and verdict."""
    cpus: float = 1.0
    gpus: float = 0.0
    """Ray resources of one replica."""
    temperature: float = 1.0
    """Of the judgments, where a request says nothing."""
    label_rule: str | None = None
    """What Positive was in training, in words."""
    revision: str | None = None
    policy: PolicyOptions | None = None
    """What solves; None: nothing does."""
    api_token: str | None = field(default_factory=_token_of_environment, repr=False)
    """A key without limits. Default: STEPWISER_API_TOKEN."""

    def __post_init__(self) -> None:
        if self.max_tokens >= self.engine.max_model_len:
            raise UserError(
                f"judge_max_tokens={self.max_tokens} leaves no room for a prompt within "
                f"engine.max_model_len={self.engine.max_model_len}: lower the former or raise the "
                "latter"
            )
        if self.serve.run is not None:
            LabelledRun(Path(self.serve.run))
        if self.serve.keys is not None:
            read_keys(Path(self.serve.keys))
        elif self.api_token is None and not _is_loopback(self.serve.host):
            raise UserError(
                f"serve.host={self.serve.host}: anyone who reaches this machine could ask the "
                "judge; make keys with `stepwiser keys add NAME --file keys.json` and set "
                f"serve.keys=keys.json, or set {TOKEN_VARIABLE}"
            )

    @property
    def max_replicas(self) -> int:
        return max(self.serve.replicas, self.serve.max_replicas or 0)


def build_app(options: ServeOptions) -> serve.Application:
    """The application, not yet running."""
    config = options.serve
    quiet = LoggingConfig(encoding="JSON")
    replicas: dict[str, Any] = {"num_replicas": config.replicas}
    if options.max_replicas > config.replicas:
        replicas = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=config.replicas,
                max_replicas=options.max_replicas,
                # Half full, so that a replica that is only now starting comes before the queue.
                target_ongoing_requests=max(1, config.max_ongoing_requests // 2),
            )
        }
    of_a_replica: dict[str, Any] = {
        "max_constructor_retry_count": 2,
        # Three failed checks replace a replica; its engine answers them between two steps.
        "health_check_period_s": 2,
        # Serve's own default of 5 would starve the engine's batches.
        "max_ongoing_requests": config.max_ongoing_requests,
        "graceful_shutdown_timeout_s": _longest(config),
        "graceful_shutdown_wait_loop_s": 0.2,
        **_surge(options.cpus, options.gpus),
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
        "logging_config": quiet,
    }
    judge = serve.deployment(name=JUDGE, **of_a_replica, **replicas)(JudgeReplica).bind(
        ReplicaOptions(
            engine=options.engine,
            prompts=options.prompts,
            max_tokens=options.max_tokens,
            votes=config.votes,
            temperature=options.temperature,
            label_rule=options.label_rule,
            revision=options.revision,
        )
    )
    limits = IngressOptions(
        places=options.max_replicas * config.max_ongoing_requests,
        max_waiting=config.max_queued_requests,
        max_body_bytes=config.max_body_kb * 1024,
        deadline_s=config.deadline_s,
        keys_file=str(Path(config.keys).absolute()) if config.keys else None,
        api_token=options.api_token,
        allowed_origins=tuple(config.allowed_origins),
        policy=served_name(options.policy.engine.model) if options.policy else None,
        run_dir=str(Path(config.run).absolute()) if config.run else None,
    )

    others, names = [judge], [JUDGE]
    if options.policy is not None:
        policy = serve.deployment(name=POLICY, num_replicas=1, **of_a_replica)(PolicyReplica)
        others.append(policy.bind(options.policy, judge))
        names.append(POLICY)

    def asgi() -> FastAPI:
        """Called in the ingress."""
        application = serve.get_replica_context().app_name
        found = [
            Replicas(serve.get_deployment_handle(name, app_name=application)) for name in names
        ]
        return make_api(
            limits, found[0], lambda: _get_serve_request_context().request_id, *found[1:]
        )

    @serve.ingress(asgi)
    class Ingress:
        """The routes, and the end of them. It is given the others only to be deployed with them."""

        def __init__(self, *others: Any) -> None:
            pass

        async def drain(self, patience_s: float) -> int:
            """Refuse what is new; how much of the rest is not done after so many seconds."""
            left: int = await self.app.state.work.drain(patience_s)
            return left

    ingress = serve.deployment(
        name=INGRESS,
        # One, so that a key's limits and the turns of the queue are of the whole service.
        num_replicas=1,
        max_ongoing_requests=_MOST_CONNECTIONS,
        graceful_shutdown_timeout_s=_longest(config),
        graceful_shutdown_wait_loop_s=HAND_OVER_S,
        ray_actor_options={"num_cpus": 0},
        logging_config=quiet,
        **_surge(0, 0),
    )
    return ingress(Ingress).bind(*others)


def _longest(config: ServeConfig) -> float:
    """What a replica that is replaced has to end in: whatever it has accepted is done by then."""
    return max(config.drain_s, config.deadline_s)


def _surge(cpus: float, gpus: float) -> dict[str, int]:
    """Have a new version start before the old one ends, where the cluster has room for both.

    Where it has none, Serve would wait for room for ever: there the old replicas go first, one
    after the other, and requests wait meanwhile.
    """
    # Of Ray 2.60; older ones always end an old replica first.
    if "max_surge_percent" not in inspect.signature(serve.deployment).parameters:
        return {}
    free = ray.available_resources() if ray.is_initialized() else {}
    room = free.get("CPU", 0.0) >= cpus and free.get("GPU", 0.0) >= gpus
    # The least there is: one replica at a time.
    return {"max_surge_percent": 1} if room else {}


def run(
    options: ServeOptions,
    blocking: bool = True,
    renewed: Callable[[], ServeOptions] | None = None,
) -> str:
    """Serve on the Ray cluster of this process (started here if there is none); return the URL.

    When blocking, Ctrl-C takes the service down and returns, SIGTERM does so once the requests
    that were accepted are answered, and SIGUSR1 replaces the judge by that of ``renewed`` without
    losing a request. Raises UserError for a port that is taken and for a cluster whose Serve
    already listens somewhere else.
    """
    host, port = options.serve.host, options.serve.port
    if not ray.is_initialized():
        ray.init()
    # What it says of itself there a person has no use for.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _signals() as (ended, renew):
        _start_http(host, port)
        try:
            deploy(options)
        except (UserError, KeyboardInterrupt):
            serve.shutdown()
            raise
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
        print(f"serving {options.engine.model} at {url} (Ctrl-C stops it)", flush=True)
        if blocking:
            try:
                while not ended.wait(1.0):
                    if renew.is_set() and renewed is not None:
                        renew.clear()
                        _replace(renewed)
                _drain(options.serve.drain_s)
            except KeyboardInterrupt:
                print("stopping", flush=True)
            finally:
                hush()
                serve.shutdown()
    return url


def deploy(options: ServeOptions) -> None:
    """Have this cluster's Serve run the application, in the place of the one that it runs.

    Requests go to the old replicas until the new ones are there, and those that an old one has
    accepted it answers. Raises UserError where the judge does not start.
    """
    try:
        serve.run(build_app(options), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        reason = _why_not_started() or str(error)
        raise UserError(f"the judge {options.engine.model} did not start: {reason}") from error


def _replace(renewed: Callable[[], ServeOptions]) -> None:
    print("replacing the judge", flush=True)
    try:
        options = renewed()
        deploy(options)
    except UserError as error:
        print(f"the judge stays the one it was: {error}", flush=True)
        return
    card = serve.get_deployment_handle(JUDGE, app_name=APP_NAME).card.remote().result()
    version = f"weight version {card.model.weight_version}"
    print(f"serving {options.engine.model}, {version}", flush=True)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set by SIGTERM, which is what systemd, Docker and Kubernetes send; by SIGUSR1."""
    ended, renew = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended, renew
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: ended.set()),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: renew.set()),
    }
    try:
        yield ended, renew
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(patience_s: float) -> None:
    print(f"stopping: answering what was accepted, for at most {patience_s:g} s", flush=True)
    handle = serve.get_app_handle(APP_NAME)
    left = handle.drain.remote(patience_s).result(timeout_s=patience_s + GIVE_UP_S + STOP_S)
    _wait_for_proxies()
    print(f"{left} requests were given up" if left else "all answered", flush=True)


def _wait_for_proxies() -> None:
    """Until they have sent on what the ingress has answered: Serve ends them without a look."""
    client = _get_global_client()
    assert client is not None
    proxies = ray.get(client._controller.get_proxies.remote()).values()
    end = time.monotonic() + STOP_S
    while time.monotonic() < end and any(
        ray.get([proxy.__ray_call__.remote(_ongoing) for proxy in proxies])
    ):
        time.sleep(0.05)


def _ongoing(proxy: Any) -> int:
    """Requests that one proxy, in whose process this is called, has not yet answered."""
    count: int = proxy.http_proxy._ongoing_requests
    return count


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
