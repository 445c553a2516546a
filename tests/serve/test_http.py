"""The service over real HTTP, with a real engine and the packaged base model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ports import reserved_ports
from serve.page.files import FOLDER
from tests.serve.fuzz import fuzz
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


def _with_policy(options: Any) -> Any:
    """The model that judges writes too: it was pretrained on both."""
    from serve.solving.replica import PolicyOptions
    from stepwiser.config import load_config

    config = load_config(ROOT / "configs" / "embedded.yaml", [])
    return replace(options, policy=PolicyOptions(options.engine, config.prompts, config.solve))


@dataclass(frozen=True)
class Server:
    url: str
    keys: Path


@pytest.fixture(scope="module")
def server(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from ray import serve

    from serve.access.keys import add_key
    from serve.app import run

    keys = tmp_path_factory.mktemp("serving") / "keys.json"
    add_key(keys, "unused")
    limits = [f"serve.keys={keys}", "serve.max_ongoing_requests=16", "serve.max_queued_requests=24"]
    shown = tmp_path_factory.mktemp("runs")
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs-0.1.tar.xz") as archive:
        archive.extractall(shown, filter="data")
    limits += [f"serve.run={shown / 'quickstart'}", "serve.max_body_kb=64"]
    with reserved_ports(1) as (port,):
        try:
            options = _with_policy(_options(port, limits, api_token=TOKEN))
            yield Server(run(options, blocking=False), keys)
        finally:
            serve.shutdown()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=server.url, timeout=120, headers=headers) as client:
        yield client


def _replica(method: str, deployment: str = "judge") -> Any:
    from ray import serve

    from serve.app import APP_NAME

    return getattr(serve.get_deployment_handle(deployment, app_name=APP_NAME), method).remote()


def _idle_within(seconds: float, deployment: str = "judge") -> bool:
    """Whether the engine has nothing left to do by then."""
    deadline = time.monotonic() + seconds
    while True:
        stats = _replica("stats", deployment).result()
        if stats.sequences_running + stats.sequences_waiting == 0:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _shape(reply: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has the one shape and the id of its header."""
    body = reply.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert {"type", "message", "request_id"} <= set(error) <= {
        "type", "message", "request_id", "param"
    }  # fmt: skip
    assert error["request_id"] == reply.headers["x-request-id"]
    return dict(error)


def test_replicas_log_under_the_id_that_the_client_gets(client: httpx.Client) -> None:
    solution = {"problem": "1 + 1", "steps": ["1 + 1 = 2"]}
    number = client.post("/v1/judge", json=solution).headers["x-request-id"]
    logs = Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs", "serve")

    def told(deployment: str) -> bool:
        texts = [file.read_text() for file in logs.glob(f"replica_*_{deployment}_*.log")]
        return any(number in line for text in texts for line in text.splitlines())

    deadline = time.monotonic() + 20
    while not (told("ingress") and told("judge")):
        assert time.monotonic() < deadline, [told("ingress"), told("judge")]
        time.sleep(0.2)


def test_health_and_models_name_the_model(client: httpx.Client) -> None:
    for route in ("/health", "/ready"):
        health = client.get(route, headers={"Authorization": ""})
        assert health.status_code == 200
        assert health.json()["ready"] is True
        assert health.json()["model"] == {"name": "base_model", "weight_version": 0}
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "base_model"
    assert model["max_prompt_tokens"] == CONTEXT - MAX_TOKENS
    judge = client.get("/version").json()["judge"]
    assert judge["label_rule"] == "Rel-Effective"


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    """Its files need no key and run under a policy that lets nothing else run."""
    anybody = {"Authorization": ""}
    page = client.get("/", headers=anybody)
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    links = re.findall(r'(?:src|href)="(?!#)([^"]+)"', page.text)
    assert len(links) >= 5 and all(link.startswith("page/") for link in links)
    modules = [f"page/{path.name}" for path in FOLDER.glob("*.js")]
    for link in {*links, *modules, "page/katex/fonts/KaTeX_Main-Regular.woff2"}:
        file = client.get(f"/{link}", headers=anybody)
        assert file.status_code == 200, link
        policy = file.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert file.headers["x-content-type-options"] == "nosniff"
        if link.endswith(".js"):
            assert file.headers["content-type"].startswith("text/javascript")
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", page.text)
    missing = client.get("/page/../ingress.py", headers=anybody)
    assert missing.status_code in (401, 404)
    assert _shape(client.get("/page/nothing.js"))["type"] == "not_found"


def test_a_labelled_run_is_shown_a_few_solutions_at_a_time(client: httpx.Client) -> None:
    pages = [client.get("/v1/run", params={"offset": at, "limit": 20}).json() for at in (0, 20)]
    assert [len(page["solutions"]) for page in pages] == [20, 12]
    assert {(page["name"], page["total"]) for page in pages} == {("quickstart", 32)}
    assert client.get("/health").json()["run"] == "quickstart"
    rows = [row for page in pages for row in page["solutions"]]
    assert len({row["id"] for row in rows}) == 32
    wrong = client.get("/v1/run", params={"limit": 50, "outcome": "wrong"}).json()
    ids = [row["id"] for row in rows if not row["correct"]]
    assert [row["id"] for row in wrong["solutions"]] == ids and wrong["total"] == len(ids) == 18
    chunks = [chunk for row in rows for chunk in row["chunks"]]
    valued = [chunk["value"] for chunk in chunks if chunk["value"]]
    assert any(chunk["label"] is False for chunk in chunks)
    assert any(0 < value["mean"] < 1 for value in valued)
    for value in valued:
        assert value["mean"] == pytest.approx(value["successes"] / value["trials"])
        assert value["low"] <= value["mean"] <= value["high"]
    refused = client.get("/v1/run", params={"limit": 51})
    assert refused.status_code == 422 and _shape(refused)["param"] == "query.limit"


def test_a_problem_is_solved_by_chunk_reset(client: httpx.Client) -> None:
    body = {"problem": PROBLEM, "samples_per_chunk": 3}
    for _ in range(20):
        answered = client.post("/v1/solve", json=body)
        assert answered.status_code == 200, answered.text
        answer = answered.json()
        if len(answer["tried"]) > 1:
            break
    assert len(answer["tried"]) > 1, "of 20 first chunks the judge has refused none"
    assert answer["policy"] == "base_model" and answer["judge"]["name"] == "base_model"
    tried, usage = answer["tried"], answer["usage"]
    assert [chunk["sample"] for chunk in tried if chunk["round"] == 0][:2] == [0, 1]
    assert all(chunk["accepted"] == (chunk["verdict"] != "Negative") for chunk in tried)
    assert usage["judge_tokens"] == sum(chunk["judge_tokens"] for chunk in tried)
    spent = usage["accepted_tokens"] + usage["rejected_tokens"]
    assert spent == sum(chunk["policy_tokens"] for chunk in tried)
    assert answer["forced"] in (0, 1)
    assert "".join(answer["steps"]) and f"\\boxed{{{answer['answer']}}}" in answer["text"]
    events = _events(client.post("/v1/solve", json=body | {"stream": True}))
    names = [name for name, _ in events]
    assert names[0] == "chunk" and names[-1] == "done" and set(names) <= {"chunk", "kept", "done"}
    done = events[-1][1]
    last = [data for name, data in events if name != "done"][-1]
    assert (last.get("accepted")) or names[-2] == "kept"
    assert done["scores"][-1] == last["score"]
    assert done["tried"] == []


def test_who_stops_waiting_for_a_solution_takes_the_search_along(client: httpx.Client) -> None:
    late = client.post("/v1/solve", json={"problem": PROBLEM, "deadline_s": 0.03})
    assert late.status_code == 504 and _shape(late)["type"] == "deadline_exceeded"
    assert _idle_within(1.0, "policy") and _idle_within(1.0)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/solve", json={"problem": PROBLEM}, timeout=0.1)
    assert _idle_within(1.0, "policy") and _idle_within(1.0)
    for body, message in (
        ({"problem": "7" * 2000}, "problem: makes a prompt of"),
        ({"problem": "p", "max_chunks": 9}, "max_chunks: is 9, this server's limit is 8"),
        ({"problem": "p", "samples": 9}, "samples: unknown field"),
    ):
        reply = client.post("/v1/solve", json=body | {"stream": True})
        assert reply.status_code == 422 and message in _shape(reply)["message"]


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
        ({"problem": "p", "steps": []}, "steps: is empty; give at least one"),
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
    error = _shape(reply)
    assert error["type"] == "invalid_request"
    assert message in error["message"]


def test_every_route_but_the_open_ones_wants_a_key(server: Server, client: httpx.Client) -> None:
    from serve.access.keys import add_key, revoke_key

    revoked = add_key(server.keys, "gone")
    revoke_key(server.keys, "gone")
    time.sleep(1.2)  # the file is looked at once a second
    schema = client.get("/openapi.json").json()
    routes = [(method, path) for path in schema["paths"] for method in schema["paths"][path]]
    assert len(routes) >= 16
    routes += [("get", "/openapi.json"), ("get", "/no-such-route"), ("get", "/page")]
    routes += [("delete", "/v1/judge"), ("options", "/v1/judge"), ("post", "/v1/judge/")]
    wrong = [
        {}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN},
        {"Authorization": f"Bearer {revoked}"}, {"Cookie": f"token={TOKEN}"},
        {"X-Api-Key": TOKEN}, {"Proxy-Authorization": f"Bearer {TOKEN}"},
    ]  # fmt: skip
    with httpx.Client(base_url=server.url, timeout=60) as anybody:
        for method, path in routes:
            if path in ("/health", "/ready"):
                assert anybody.request(method, path, headers=wrong[1]).status_code == 200
                continue
            for number, headers in enumerate(wrong):
                # Neither is a key taken that stands in the address or in the body.
                beside: dict[str, Any] = {"params": {"key": TOKEN, "api_key": TOKEN}}
                if method == "post":
                    beside["json"] = {"key": TOKEN, "authorization": TOKEN}
                reply = anybody.request(method, path, headers=headers, **beside)
                assert reply.status_code == 401, (method, path, number)
                assert _shape(reply)["type"] == "unauthorized"
                assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert anybody.get("/health").json()["token_required"] is True


def test_keys_have_rates_and_can_be_revoked(server: Server, client: httpx.Client) -> None:
    from serve.access.keys import add_key, revoke_key

    secret = add_key(server.keys, "team", per_minute=2)
    time.sleep(1.2)  # the file is looked at once a second
    body = {"problem": PROBLEM, "steps": STEPS[:1]}
    # As trainers send it that set no header: in the address.
    address = server.url.replace("http://", f"http://any:{secret}@") + "/v1/judge"
    replies = [httpx.post(address, json=body, timeout=60) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert _shape(replies[2])["type"] == "rate_limited"
    assert 50 <= int(replies[2].headers["Retry-After"]) <= 61
    revoke_key(server.keys, "team")
    time.sleep(1.2)
    assert httpx.post(address, json=body, timeout=60).status_code == 401


def test_what_is_not_there_has_the_same_shape(client: httpx.Client) -> None:
    error = _shape(client.get("/v1/nothing"))
    assert error["type"] == "not_found" and "/openapi.json" in error["message"]
    assert _shape(client.get("/v1/judge"))["type"] == "method_not_allowed"
    assert _shape(client.post("/v1/judge", content=b"\xff"))["type"] in (
        "malformed_request",
        "invalid_request",
    )


def test_a_large_body_is_refused_before_it_is_read(server: Server, client: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/judge HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 20000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")

    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * 1024

    reply = client.post("/v1/judge", content=chunks())
    assert reply.status_code == 413
    assert "serve.max_body_kb" in _shape(reply)["message"]


def test_many_requests_at_once(client: httpx.Client) -> None:
    def ask(number: int) -> httpx.Response:
        body = {"problem": PROBLEM, "steps": [f"buys {number}+1={number + 1}\n"] * 3}
        return client.post("/v1/judge", json=body)

    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(ask, range(16)))
    assert {reply.status_code for reply in replies} == {200}
    for number, reply in enumerate(replies):
        assert f"buys {number}+1" in reply.json()["steps"][2]["text"]


def test_what_is_too_much_is_refused_at_once(client: httpx.Client) -> None:
    def ask(_: int) -> tuple[httpx.Response, float]:
        body = {"problem": PROBLEM, "steps": STEPS, "votes": 16}
        began = time.monotonic()
        return client.post("/v1/judge", json=body), time.monotonic() - began

    with ThreadPoolExecutor(80) as threads:
        replies = list(threads.map(ask, range(80)))
    refused = [reply for reply, _ in replies if reply.status_code == 429]
    answered = [reply for reply, _ in replies if reply.status_code == 200]
    assert len(refused) + len(answered) == 80
    assert len(answered) >= 40  # 16 places and 24 that wait
    assert refused, "80 clients found room where there is room for 40"
    for reply in refused:
        assert _shape(reply)["type"] == "overloaded"
        assert int(reply.headers["Retry-After"]) >= 1
    slowest = max(seconds for reply, seconds in replies if reply.status_code == 429)
    assert slowest < max(seconds for _, seconds in replies)


HEAVY = {"problem": PROBLEM, "steps": [f"buys {i}+1={i + 1}\n" for i in range(6)], "votes": 64}


def test_a_deadline_ends_the_work(client: httpx.Client) -> None:
    reply = client.post("/v1/judge", json=HEAVY | {"deadline_s": 0.2})
    assert reply.status_code == 504
    assert _shape(reply)["type"] == "deadline_exceeded"
    assert _idle_within(1.0)
    reply = client.post("/v1/judge", json=HEAVY | {"deadline_s": 0.2, "stream": True})
    assert (reply.status_code == 504) or "event: error" in reply.text
    assert _idle_within(1.0)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_takes_the_work_along(client: httpx.Client, stream: bool) -> None:
    before = _replica("stats").result().finished_requests
    if stream:
        with client.stream("POST", "/v1/judge", json=HEAVY | {"stream": True}) as reply:
            assert reply.status_code == 200
            next(reply.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            # Longer than the way to the engine and shorter than the judging.
            client.post("/v1/judge", json=HEAVY, timeout=0.3)
    assert _idle_within(1.0)
    assert _replica("stats").result().finished_requests - before < len(HEAVY["steps"])


def _events(reply: httpx.Response) -> list[tuple[str, Any]]:
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_stream_tells_what_an_answer_holds(client: httpx.Client) -> None:
    body = {"problem": PROBLEM, "steps": STEPS, "temperature": 0, "votes": 1}
    answer = client.post("/v1/judge", json=body).json()
    reply = client.post("/v1/judge", json=body | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = _events(reply)
    written = {
        i: "".join(
            data["text"] for name, data in events if name == "analysis" and data["index"] == i
        )
        for i in range(len(STEPS))
    }
    steps = sorted((d for name, d in events if name == "step"), key=lambda d: d["index"])
    assert [s["verdict"] for s in steps] == [s["verdict"] for s in answer["steps"]]
    for step, whole in zip(steps, answer["steps"], strict=True):
        assert step["analysis"] == whole["analysis"]
        # The rest of it came with the verdict.
        assert written[step["index"]] and step["analysis"].startswith(written[step["index"]])
    name, done = events[-1]
    assert name == "done"
    assert done["first_negative"] == answer["first_negative"]
    assert done["usage"]["judge_tokens"] == answer["usage"]["judge_tokens"]
    refused = client.post("/v1/judge", json={"problem": "p", "response": "<chunk>", "stream": True})
    assert refused.status_code == 422
    assert "missing closing tag" in _shape(refused)["message"]


def test_a_lone_vote_has_a_probability(client: httpx.Client) -> None:
    body = {"problem": PROBLEM, "steps": STEPS, "votes": 1, "score_only": True}
    steps = client.post("/v1/judge", json=body).json()["steps"]
    assert all(s["analysis"] is None and s["text"] is None for s in steps)
    scores = [s["score"] for s in steps if s["score"] is not None]
    assert scores and all(0 < score < 1 for score in scores)


def test_items_of_a_batch_fail_by_themselves(client: httpx.Client) -> None:
    good = {"problem": PROBLEM, "steps": STEPS}
    bad = {"problem": "7" * 2000, "steps": ["a"]}
    body = client.post("/v1/judge/batch", json={"items": [good, bad, good]}).json()
    assert [item["index"] for item in body["items"]] == [0, 1, 2]
    assert [item.get("error") is None for item in body["items"]] == [True, False, True]
    assert body["failed"] == 1
    assert "has 2000 tokens" in body["items"][1]["error"]["message"]
    assert len(body["items"][2]["result"]["steps"]) == 2
    many = client.post("/v1/judge/batch", json={"items": [good] * 41})
    assert many.status_code == 422 and "split the batch" in _shape(many)["message"]


def test_scores_are_reductions_of_step_scores(client: httpx.Client) -> None:
    body = {"problem": PROBLEM, "steps": STEPS, "temperature": 0, "votes": 1}
    scores = client.post("/v1/score", json=body).json()["step_scores"]
    assert len(scores) == 2
    for reduction, expected in (
        ("mean", sum(scores) / 2),
        ("min", min(scores)),
        ("product", scores[0] * scores[1]),
        ("last", scores[1]),
    ):
        found = client.post("/v1/score", json=body | {"reduction": reduction}).json()["score"]
        assert found == pytest.approx(expected, abs=1e-6)


def test_trainers_get_their_rewards(server: Server, client: httpx.Client) -> None:
    response = "\n\n".join(step.strip() for step in STEPS)
    chat = f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
    query = {"query": [PROBLEM + response, chat], "prompts": [PROBLEM, chat.split(response)[0]]}
    reply = client.post("/v1/rewards/openrlhf?reduction=min", json=query | {"labels": ["1", "2"]})
    assert reply.status_code == 200, reply.text
    assert reply.json()["rewards"] == reply.json()["scores"]
    assert all(0 <= reward <= 1 for reward in reply.json()["rewards"])
    reward = client.post(
        "/v1/rewards/slime",
        json={"prompt": [{"role": "user", "content": PROBLEM}], "response": response, "label": "1"},
    ).json()
    assert isinstance(reward, float) and 0 <= reward <= 1
    pooled = client.post(
        "/pooling",
        json={
            "model": "any",
            "messages": [
                {"role": "system", "content": "Reason step by step."},
                {"role": "user", "content": PROBLEM},
                {"role": "assistant", "content": "<extra_0>".join([*STEPS, ""])},
            ],
        },
    ).json()
    (rows,) = [entry["data"] for entry in pooled["data"]]
    assert len(rows) == 2 and all(wrong + right == pytest.approx(1) for wrong, right in rows)
    classified = client.post("/classify", json={"input": [chat, chat]}).json()["data"]
    assert [entry["index"] for entry in classified] == [0, 1]
    assert all(sum(entry["probs"]) == pytest.approx(1) for entry in classified)
    pairs = {"text_1": PROBLEM, "text_2": [response, STEPS[0]]}
    scored = client.post("/score", json=pairs).json()
    assert [entry["object"] for entry in scored["data"]] == ["score", "score"]
    apart = client.post("/v1/rewards/openrlhf", json={"query": ["plain"]})
    assert apart.status_code == 422 and "cannot be told apart" in _shape(apart)["message"]


def test_clients_of_openai_can_ask(server: Server) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN)
    (model,) = client.models.list().data
    messages: Any = [{"role": "user", "content": f"{PROBLEM}\njudge {STEPS[0]}"}]
    given = {"model": model.id, "messages": messages, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**given, n=2)
    texts = [choice.message.content for choice in whole.choices]
    assert len(texts) == 2 and texts[0] == texts[1] and texts[0]
    assert whole.usage is not None and whole.usage.completion_tokens > 0
    pieces = list(client.chat.completions.create(**given, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == texts[0]
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    with pytest.raises(openai.UnprocessableEntityError, match="the last one is the user's"):
        client.chat.completions.create(
            model=model.id, messages=[*messages, {"role": "assistant", "content": "x"}]
        )


def test_the_judges_client_gives_what_the_routes_give(server: Server) -> None:
    from stepwiser.client import JudgeClient, JudgeError, JudgeResponse, Solution

    greedy: Any = {"temperature": 0.0, "votes": 1}
    with JudgeClient(server.url, key=TOKEN, batch_size=2) as judge:
        assert judge.version().judge.model.name == "base_model"
        answer = judge.judge(PROBLEM, STEPS, **greedy)
        assert [step.text for step in answer.steps] == STEPS
        *told, done = judge.stream(PROBLEM, STEPS, **greedy)
        assert {type(event).__name__ for event in told} == {"AnalysisEvent", "StepVerdict"}
        assert isinstance(done, JudgeResponse)
        verdicts = [step.verdict for step in answer.steps]
        assert [step.verdict for step in done.steps] == verdicts
        score = judge.score(PROBLEM, STEPS, reduction="min", **greedy)
        assert score.score == min(score.step_scores)
        bad = Solution(PROBLEM, response="<chunk>never closed")
        good = Solution(PROBLEM, response="".join(f"<chunk>{step}</chunk>" for step in STEPS))
        blank = Solution(PROBLEM, [""])  # which the schema refuses with its whole batch
        first, second, third, *rest = judge.judge_many([good, bad, blank, *[good] * 8], **greedy)
        assert isinstance(second, JudgeError) and second.type == "invalid_request"
        assert "missing closing tag" in second.message and second.param == "response"
        assert isinstance(third, JudgeError) and "steps.0: is empty" in third.message
        for found in (first, *rest):
            assert isinstance(found, JudgeResponse)
            assert [step.verdict for step in found.steps] == verdicts
        many = judge.score_many([Solution(PROBLEM, STEPS), bad], **greedy)
        assert [isinstance(one, JudgeError) for one in many] == [False, True]
    with pytest.raises(JudgeError, match="missing, wrong or revoked key") as found:
        JudgeClient(server.url, key="wrong").version()
    assert found.value.status == 401


def test_a_file_is_judged_alike_by_engines_and_by_the_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cli.judge_command import judge_solutions
    from pipelines.evaluation.file_judging import JudgeJob
    from stepwiser.config import load_config

    monkeypatch.setenv("STEPWISER_API_TOKEN", TOKEN)
    source = tmp_path / "solutions.jsonl"
    steps = [f"buys {n}+21={n + 21}\n" for n in range(40, 46)]
    rows: list[dict[str, Any]] = [
        {"id": f"s{n}", "problem": PROBLEM, "steps": steps[:n]} for n in (1, 2)
    ]
    rows += [{"id": "text", "problem": PROBLEM, "response": "\n\n".join(STEPS)}]
    rows += [{"id": "long", "problem": "7" * 2000, "steps": ["a"]}]
    source.write_text("\n".join(json.dumps(row) for row in rows))
    small = ["engine.count=1", "engine.kv_cache_mb=64", "serve.model=embedded"]
    config = load_config(
        ROOT / "configs" / "embedded.yaml", [f"run_dir={tmp_path / 'run'}", *small]
    )
    found = []
    for name, address in (("engines", None), ("server", server.url)):
        job = JudgeJob(source, tmp_path / f"{name}.jsonl", votes=1, temperature=0.0)
        assert judge_solutions(job, config, address) == 1
        found.append([json.loads(line) for line in job.out.read_text().splitlines()])
        assert "has 2000 tokens" in job.rejects.read_text()
        assert not job.journal.exists()
    ours, theirs = found
    assert [row["id"] for row in ours] == ["s1", "s2", "text"]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("steps", "labels", "analyses", "votes", "judge", "first_negative", "tokens"):
            assert mine[key] == other[key], key
        assert mine["step_scores"] == pytest.approx(other["step_scores"], abs=1e-3)


@pytest.mark.parametrize("kind", ["TRLReward", "AsyncTRLReward"])
def test_trl_trains_on_the_judges_rewards(server: Server, tmp_path: Path, kind: str) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    import stepwiser.client.rewards
    from tests.support.tiny import make_tiny_model

    reward = getattr(stepwiser.client.rewards, kind)(address=server.url, key=TOKEN, votes=4)
    trainer = GRPOTrainer(
        model=str(make_tiny_model(tmp_path / "policy")),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4,
            num_generations=4, max_completion_length=12, logging_steps=1, use_cpu=True,
            report_to=[], save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": PROBLEM}] * 4),
    )  # fmt: skip
    trainer.train()
    (log,) = [row for row in trainer.state.log_history if "reward" in row]
    assert 0 <= log["rewards/stepwiser_judge/mean"] <= 1
    assert log["judge/unjudged"] < 1, "some completion had a reward"


def test_figures_for_prometheus(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    for line in (
        'stepwiser_requests_total{route="/v1/judge",status="200"}',
        'stepwiser_requests_total{route="/v1/judge",status="429"}',
        'stepwiser_tokens_total{kind="judge"}',
        "stepwiser_waiting 0.0",
        'stepwiser_verdicts_total{verdict="Positive"}',
        "stepwiser_weight_version 0.0",
    ):
        assert line in text


def test_no_request_is_a_fault_of_the_server(server: Server) -> None:
    """STEPWISER_FUZZ asks for more of them than a test may take."""
    count = int(os.environ.get("STEPWISER_FUZZ", "400"))
    found = fuzz(server.url, TOKEN, count)
    assert sum(found.values()) == count
    assert found["422"] > count // 2 and found["200"], found
    told = sum(found[kind] for kind in ("hung up", "not HTTP"))
    assert told < count // 10, "most of what is wrong is told in this program's own words"


def test_the_port_must_be_free(client: httpx.Client) -> None:
    from serve.app import run
    from stepwiser.errors import UserError

    with pytest.raises(UserError, match="already listens on"):
        run(_options(), blocking=False)


def test_no_room_for_a_prompt_is_refused() -> None:
    from stepwiser.errors import UserError

    with pytest.raises(UserError, match="leaves no room for a prompt"):
        replace(_options(), max_tokens=CONTEXT)


def test_a_failed_engine_is_an_error_and_is_replaced(client: httpx.Client) -> None:
    # What ends an engine for good, without ending the process around it.
    _replica("__del__").result()
    body = {"problem": PROBLEM, "steps": STEPS}
    failed = client.post("/v1/judge", json=body)
    if failed.status_code != 200:  # on a busy machine Serve may have replaced it by now
        assert failed.status_code == 503, failed.text
        assert int(failed.headers["Retry-After"]) >= 1
        assert "steps.0: the engine" in _shape(failed)["message"]
        assert "is gone" in _shape(failed)["message"]
    assert client.get("/health").status_code == 200
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        reply = client.post("/v1/judge", json=body)
        if reply.status_code == 200:
            break
        assert reply.status_code == 503, reply.text  # an error, never verdicts
        time.sleep(0.5)
    assert reply.status_code == 200, "the replica was not replaced"
    assert client.get("/ready").status_code == 200


def _killed_under_load(client: httpx.Client, pid: int) -> list[int]:
    """Statuses of eight requests that were under way when a process was killed: each is answered,
    or told in the one shape to come again."""
    with ThreadPoolExecutor(8) as threads:
        replies = [threads.submit(client.post, "/v1/judge", json=HEAVY) for _ in range(8)]
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        found = [reply.result() for reply in replies]
    for reply in found:
        if reply.status_code != 200:
            assert reply.status_code == 503, reply.text
            assert int(reply.headers["Retry-After"]) >= 1
            _shape(reply)
    return [reply.status_code for reply in found]


def test_a_lost_replica_loses_no_request(client: httpx.Client) -> None:
    pid = _replica("pid").result()
    assert 200 in _killed_under_load(client, pid)
    assert _replica("pid").result() != pid


def test_a_lost_ingress_is_no_fault_of_the_request(client: httpx.Client) -> None:
    pid = _ingress_pid()
    assert 503 in _killed_under_load(client, pid), "they were under way"
    # Who comes again waits for another, whatever its limits have forgotten.
    assert client.post("/v1/judge", json=HEAVY).status_code == 200
    assert _ingress_pid() != pid


def _ingress_pid() -> int:
    import ray
    from ray.util import list_named_actors

    from serve.app import INGRESS

    (found,) = [a for a in list_named_actors(all_namespaces=True) if f"#{INGRESS}#" in a["name"]]
    actor = ray.get_actor(found["name"], found["namespace"])
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


SCRIPT = """
import sys
from serve.app import run
from tests.serve.test_http import _options
from cluster.local_nodes import local_cluster
with local_cluster(2):
    # Long enough for a machine that does other things too.
    run(_options(int(sys.argv[1]), ["serve.deadline_s=240", "serve.drain_s=240"]))
print("BACK", flush=True)
"""


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_ports(1) as (port,):
        yield port


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_take_the_service_down(port: int, number: signal.Signals) -> None:
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
        unsolved = httpx.post(f"{url}/v1/solve", json={"problem": PROBLEM}, timeout=60)
        assert unsolved.status_code == 404 and "serve.policy" in _shape(unsolved)["message"]
        with ThreadPoolExecutor(9) as threads:
            post = partial(httpx.post, f"{url}/v1/judge", timeout=300)
            heavy = HEAVY | {"votes": 16}
            accepted = []
            if number == signal.SIGTERM:
                accepted = [threads.submit(post, json=heavy) for _ in range(8)]
                while "stepwiser_running 8.0" not in httpx.get(f"{url}/metrics", timeout=60).text:
                    assert not any(reply.done() for reply in accepted), "8 were never under way"
                    time.sleep(0.02)
            process.send_signal(number)
            if number == signal.SIGTERM:
                told = process.stdout.readline()
                assert told.startswith("stopping"), told
                # What comes before the ingress has heard of it is still answered.
                late = post(json=heavy)
                while late.status_code == 200:
                    late = post(json=heavy)
                assert late.status_code == 503 and _shape(late)["type"] == "draining"
            assert {reply.result().status_code for reply in accepted} <= {200}
        rest, _ = process.communicate(timeout=180)
        assert ("stopping" in rest) == (number == signal.SIGINT) and "BACK" in rest, rest
        assert ("all answered" in rest) == (number == signal.SIGTERM), rest
        assert not any(word in rest for word in ("Traceback", "Fatal", "(raylet)")), rest
        assert process.returncode == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health", timeout=5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
