"""`stepwiser serve` while it is used: another judge takes over, and the end comes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
import yaml

from cluster.ports import reserved_ports
from tests.support.commands import finish, start
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = 8
PROBLEM = "ana has 64 coins. buys 21. doubles them. how many?"
GREEDY = [
    {"problem": PROBLEM, "steps": [f"buys {n}+21={n + 21}\n", "doubles"], "temperature": 0}
    for n in range(60, 68)
]
HEAVY = {"problem": PROBLEM, "steps": [f"buys {i}+1={i + 1}\n" for i in range(6)], "votes": 64}


def _judge(folder: Path, version: int, noise: float) -> Path:
    """The packaged base model with a card, and with weights of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    from stepwiser.config import load_config
    from stepwiser.prompting.hub.folders import resolve_model
    from stepwiser.run.model_card import JudgeSettings

    shutil.copytree(resolve_model("embedded"), folder)
    weights = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(version)
    tensors = {
        name: tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    config = load_config(ROOT / "configs" / "embedded.yaml", [])
    settings = JudgeSettings(
        prompts=config.judge_prompts,
        label_rule="Rel-Effective",
        max_tokens=config.judge_max_tokens,
        temperature=1.0,
        version=version,
    )
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(settings.front_matter())}---\n")
    return folder


def _point(link: Path, folder: Path) -> None:
    """As one who deploys does it: never is there none."""
    new = link.with_suffix(".new")
    new.symlink_to(folder)
    os.replace(new, link)


class Load:
    """Clients with one request each under way, until told to end."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.answers: list[tuple[int, dict[str, Any]]] = []
        """Number of the body, and what it was answered."""
        self._url = url
        self._end = threading.Event()
        self._threads = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> Load:
        self._done = [self._threads.submit(self._client, number) for number in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for done in self._done:
            done.result()
        self._threads.shutdown()

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=320) as client:
            while not self._end.is_set():
                try:
                    reply = client.post("/v1/judge", json=GREEDY[number])
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    self.answers.append((number, reply.json()))
                elif reply.status_code == 429:
                    time.sleep(1)


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_ports(1) as (port,):
        yield port


def _line(process: Popen[str], *beginnings: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginnings):
            return line
    raise AssertionError("".join(lines))


def _serving(*overrides: str) -> tuple[Popen[str], str]:
    """The command and its address; started once more where Ray had no chance, as `commands.run`."""
    for last in (False, True):
        process = start("serve", *overrides, "engine.kv_cache_mb=64")
        try:
            return process, _line(process, "serving ").split(" at ")[1].split()[0]
        except AssertionError as ended:
            process.wait()
            if last or "Ray did not start" not in str(ended):
                raise
    raise AssertionError("unreachable")


def _said(client: httpx.Client) -> dict[int, list[Any]]:
    """What the judge says at temperature 0, by number of the body."""
    return {
        number: _words(client.post("/v1/judge", json=body).raise_for_status().json())
        for number, body in enumerate(GREEDY)
    }


def _words(answer: dict[str, Any]) -> list[Any]:
    return [(step["verdict"], step["analysis"]) for step in answer["steps"]]


def _until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_another_judge_takes_over_and_what_is_too_long_at_the_end_is_told(
    tmp_path: Path, port: int
) -> None:
    link = tmp_path / "judge"
    _point(link, _judge(tmp_path / "first", 1, 0.0))
    process, url = _serving(
        f"serve.port={port}", f"serve.model={link}", f"run_dir={tmp_path / 'run'}",
        "serve.drain_s=1", "serve.deadline_s=300",
    )  # fmt: skip
    try:
        with httpx.Client(base_url=url, timeout=320) as client:
            said = {1: _said(client)}
            # One that does not start leaves the first where it is.
            _point(link, tmp_path / "nothing")
            process.send_signal(signal.SIGUSR1)
            assert "does not exist" in _line(process, "the judge stays")
            _point(link, _judge(tmp_path / "second", 2, 0.05))
            with Load(url) as load:
                _until(lambda: len(load.answers) >= 2 * CLIENTS)
                process.send_signal(signal.SIGUSR1)
                told = _line(process, "the judge stays", "serving ")
                assert "second" in told and told.endswith("weight version 2\n"), told
                now = len(load.answers)
                _until(lambda: len(load.answers) >= now + 4 * CLIENTS)
            assert set(load.statuses) <= {200, 429}, load.statuses
            said[2] = _said(client)
            assert said[1] != said[2], "the second judge says other things"
            names = {1: "first", 2: "second"}
            for number, answer in load.answers:
                version = answer["model"]["weight_version"]
                assert answer["model"]["name"] == names[version]
                assert _words(answer) == said[version][number]
            used = Counter(answer["model"]["weight_version"] for _, answer in load.answers)
            assert used[1] and used[2], used
            assert load.answers[-1][1]["model"]["weight_version"] == 2
            assert client.get("/version").json()["judge"]["model"]["weight_version"] == 2

            # The end, with more under way than a second is enough for.
            with ThreadPoolExecutor(8) as threads:
                post = threads.submit
                whole = [post(client.post, "/v1/judge", json=HEAVY) for _ in range(6)]
                asked = HEAVY | {"stream": True}
                streams = [post(client.post, "/v1/judge", json=asked) for _ in range(2)]
                _until(lambda: "stepwiser_running 8.0" in client.get("/metrics").text)
                process.send_signal(signal.SIGTERM)
                replies = [reply.result() for reply in whole]
                streamed = [reply.result() for reply in streams]
        for reply in replies:
            assert reply.status_code in (200, 503), reply.text
            if reply.status_code == 503:
                assert reply.json()["error"]["type"] == "draining"
                assert int(reply.headers["Retry-After"]) >= 1
        for reply in streamed:
            *_, last = reply.text.strip().split("\n\n")
            assert last.startswith(("event: done", "event: error")) or reply.status_code == 503
            assert ("draining" in last) == (not last.startswith("event: done"))
        given_up = sum(reply.status_code == 503 for reply in replies)
        assert given_up, "a second was enough for all of it"
        rest = finish(process, 90)
        assert "requests were given up" in rest and "Traceback" not in rest, rest
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
