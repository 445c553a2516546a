"""A machine is lost on which a replica of the judge ran, and the ingress."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from cluster.local_nodes import local_cluster
from cluster.ports import reserved_ports
from serve.proxy_errors import ENVIRONMENT
from tests.serve.test_http import PROBLEM, _options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIENTS = 6
BODY = {"problem": PROBLEM, "steps": [f"buys 64+{n}={64 + n}\n" for n in (21, 22)]}
THERE = "there"
"""A resource of the machine that is lost, which the ingress asks for."""


class Client:
    """Asks again and again, and notes what it is answered."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.replies: list[httpx.Response] = []
        self.ended = False
        self._url = url

    def ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=300) as client:
            while not self.ended:
                try:
                    reply = client.post("/v1/judge", json=BODY | {"temperature": 0})
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__] += 1
                else:
                    self.statuses[reply.status_code] += 1
                    self.replies.append(reply)
                    time.sleep(0.0 if reply.status_code == 200 else 1.0)


def test_a_lost_machine_makes_no_answer_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    import serve.app as service

    deployment = service.serve.deployment

    def placed(*arguments: Any, **options: Any) -> Any:
        if options["name"] == service.INGRESS:
            options["ray_actor_options"] |= {"resources": {THERE: 0.01}}
        return deployment(*arguments, **options)

    monkeypatch.setattr(service.serve, "deployment", placed)
    # Both nodes are this machine, where two proxies would share the port, and connections to the
    # lost one would end with it.
    start = partial(service.serve.start, proxy_location="HeadOnly")
    monkeypatch.setattr(service.serve, "start", start)
    variables = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    environment = {"env_vars": {**variables, **ENVIRONMENT}}
    with reserved_ports(1) as (port,), local_cluster(1, runtime_env=environment) as cluster:
        node = cluster.add_node(1, resources={THERE: 1})
        url = service.run(_options(port, ["serve.replicas=2"]), blocking=False)
        client = Client(url)
        with ThreadPoolExecutor(CLIENTS) as threads:
            asking = [threads.submit(client.ask) for _ in range(CLIENTS)]
            time.sleep(5.0)
            cluster.remove_node(node, allow_graceful=False)
            lost = len(client.replies)
            cluster.add_node(1, resources={THERE: 1})
            deadline = time.monotonic() + 300
            while sum(r.status_code == 200 for r in client.replies[lost:]) < 5 * CLIENTS:
                assert time.monotonic() < deadline, client.statuses
                time.sleep(0.5)
            client.ended = True
            for one in asking:
                one.result()
        serve.shutdown()
    assert client.statuses.keys() <= {200, 503}, client.statuses
    for reply in client.replies:
        if reply.status_code == 503:
            assert int(reply.headers["Retry-After"]) >= 1
            assert reply.json()["error"]["type"] == "unavailable"
    answers = [reply.json() for reply in client.replies if reply.status_code == 200]
    assert len({str([s["verdict"] for s in answer["steps"]]) for answer in answers}) == 1
