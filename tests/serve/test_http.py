"""The service over real HTTP, with a real engine and the packaged base model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from cluster.ports import reserved_ports
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

TOKEN = "a-token-for-tests"
CONTEXT, MAX_TOKENS = 256, 90  # of configs/embedded.yaml
STEPS = ["buys 64+21=85\n", "doubles 2*85=170\n\\boxed{170}"]
PROBLEM = "ana has 64 coins. buys 21. doubles them. how many?"


def _options(port: int = 8000, more: Sequence[str] = (), **fields: Any):
    from pipelines.session.engine_options import engine_options
    from serve.app import ServeOptions
    from stepwiser.config import load_config
    from stepwiser.prompting.hub.folders import resolve_model

    overrides = [f"serve.port={port}", "serve.votes=2", "engine.kv_cache_mb=64", *more]
    config = load_config(ROOT / "configs" / "embedded.yaml", overrides)
    engine = engine_options(config, resolve_model("embedded"))
    return ServeOptions(
        engine,
        config.prompts,
        config.serve,
        max_tokens=config.judge_max_tokens,
        label_rule="Rel-Effective",
        **fields,
    )


@pytest.fixture(scope="module")
def client(ray_local: None) -> Iterator[httpx.Client]:
    from ray import serve

    from serve.app import run

    with reserved_ports(1) as (port,):
        try:
            url = run(_options(port, api_token=TOKEN), blocking=False)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx.Client(base_url=url, timeout=120, headers=headers) as client:
                yield client
        finally:
            serve.shutdown()


def test_health_and_models_name_the_model(client: httpx.Client) -> None:
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json()["ready"] is True
    assert health.json()["model"] == {"name": "base_model", "weight_version": 0}
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "base_model"
    assert model["max_prompt_tokens"] == CONTEXT - MAX_TOKENS


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "StepWiser judge" in page.text
    assert "http://" not in page.text and "https://" not in page.text


def test_steps_are_judged(client: httpx.Client) -> None:
    reply = client.post("/v1/judge", json={"problem": PROBLEM, "steps": STEPS, "votes": 3})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert [s["text"] for s in body["steps"]] == STEPS
    assert body["model"] == {"name": "base_model", "weight_version": 0}
    for step in body["steps"]:
        assert len(step["votes"]) == 3
        assert (step["verdict"] is None) == (step["score"] is None)
        assert 3 <= step["tokens"] <= 3 * MAX_TOKENS
    judged = [s for s in body["steps"] if s["verdict"]]
    assert judged, "the base model gives verdicts"
    assert all(f"\\boxed{{{s['verdict']}}}" in s["analysis"] for s in judged)
    assert body["usage"]["judge_tokens"] == sum(s["tokens"] for s in body["steps"])
    negatives = [s["index"] for s in body["steps"] if s["verdict"] == "Negative"]
    assert body["first_negative"] == (negatives[0] if negatives else -1)


def test_a_tagged_response_is_the_same_request(client: httpx.Client) -> None:
    response = "".join(f"<chunk>{step}</chunk>" for step in STEPS)
    tagged = client.post("/v1/judge", json={"problem": PROBLEM, "response": response}).json()
    listed = client.post("/v1/judge", json={"problem": PROBLEM, "steps": STEPS}).json()
    assert [s["text"] for s in tagged["steps"]] == STEPS
    assert tagged["usage"]["prompt_tokens"] == listed["usage"]["prompt_tokens"]
    assert len(tagged["steps"][0]["votes"]) == 2  # the server's default


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"steps": ["a"]}, "problem: is missing"),
        ({"problem": "", "steps": ["a"]}, "problem: is empty"),
        ({"problem": "p", "steps": []}, "steps: is empty; give at least one step"),
        ({"problem": "p", "steps": ["a", ""]}, "steps.1: is empty"),
        ({"problem": "p", "steps": ["a"] * 513}, "steps: has 513 entries, the limit is 512"),
        ({"problem": "p", "steps": ["a"], "votes": 0}, "votes: "),
        ({"problem": "p", "step": ["a"]}, "step: unknown field; did you mean steps"),
        ({"problem": "p"}, "neither given"),
        ({"problem": "p", "response": "<chunk>a"}, "response: missing closing tag"),
        ({"problem": "7" * 2000, "steps": ["a"]}, "problem: has 2000 tokens, the limit is 166"),
        ("not json", "body: is not valid JSON"),
    ],
)
def test_bad_input_is_explained(client: httpx.Client, body: Any, message: str) -> None:
    sent = {"content": body} if isinstance(body, str) else {"json": body}
    reply = client.post("/v1/judge", **sent, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert message in reply.json()["error"]["message"]


def test_v1_wants_the_token(client: httpx.Client) -> None:
    for header in ("", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
        headers = {"Authorization": header}
        reply = client.post("/v1/judge", json={"problem": "p", "steps": ["a"]}, headers=headers)
        assert reply.status_code == 401
        assert "STEPWISER_API_TOKEN" in reply.json()["error"]["message"]
        assert client.get("/v1/models", headers=headers).status_code == 401
    assert client.get("/health", headers={"Authorization": ""}).json()["token_required"] is True


def test_many_requests_at_once(client: httpx.Client) -> None:
    def ask(number: int) -> httpx.Response:
        body = {"problem": PROBLEM, "steps": [f"buys {number}+1={number + 1}\n"] * 3}
        return client.post("/v1/judge", json=body)

    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(ask, range(16)))
    assert {reply.status_code for reply in replies} == {200}
    for number, reply in enumerate(replies):
        assert f"buys {number}+1" in reply.json()["steps"][2]["text"]


def test_the_port_must_be_free(client: httpx.Client) -> None:
    from serve.app import run
    from stepwiser.errors import UserError

    with pytest.raises(UserError, match="already listens on"):
        run(_options(), blocking=False)


def test_no_room_for_a_prompt_is_refused() -> None:
    from dataclasses import replace

    from stepwiser.errors import UserError

    with pytest.raises(UserError, match="leaves no room for a prompt"):
        replace(_options(), max_tokens=CONTEXT)


def test_a_failed_engine_is_an_error_and_is_replaced(client: httpx.Client) -> None:
    from ray import serve

    from serve.app import APP_NAME

    # What ends an engine for good, without ending the process around it.
    serve.get_app_handle(APP_NAME).options(method_name="__del__").remote().result()
    body = {"problem": PROBLEM, "steps": STEPS}
    failed = client.post("/v1/judge", json=body)
    assert failed.status_code == 503, failed.text
    assert "steps.0: the engine" in failed.json()["error"]["message"]
    assert "is gone" in failed.json()["error"]["message"]
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        reply = client.post("/v1/judge", json=body)
        if reply.status_code == 200:
            break
        assert reply.status_code == 503, reply.text  # an error, never verdicts
        time.sleep(0.5)
    assert reply.status_code == 200, "the replica was not replaced"
    assert client.get("/health").json()["ready"] is True


SCRIPT = """
import sys
from serve.app import run
from tests.serve.test_http import _options
from cluster.local_nodes import local_cluster
with local_cluster(2):
    run(_options(int(sys.argv[1])))
print("BACK", flush=True)
"""


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_ports(1) as (port,):
        yield port


def test_ctrl_c_takes_the_service_down(port: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving "):
                break
        assert lines and lines[-1].startswith("serving "), "".join(lines)
        url = lines[-1].split(" at ")[1].split()[0]
        assert httpx.get(f"{url}/health", timeout=60).json()["token_required"] is False
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=90)
        assert "stopping" in rest and "BACK" in rest, rest
        assert process.returncode == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health", timeout=5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
