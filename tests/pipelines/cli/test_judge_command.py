"""`stepwiser judge --address`: a file, a server, and starts that are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli.judge_command import judge_solutions
from pipelines.evaluation.file_judging import JudgeJob
from stepwiser.config import RunConfig
from stepwiser.data.step_items import read_step_items
from tests.pipelines.cli.test_run_commands import run
from tests.stepwiser.client.faulty_server import (
    MODEL,
    FaultyServer,
    Request,
    faulty_server,
    judged,
    refusal,
)

CARD = {"version": "1", "judge": {
    "model": MODEL, "revision": None, "label_rule": None, "max_prompt_tokens": 9,
    "max_judge_tokens": 9,
}}  # fmt: skip


def _judge(request: Request) -> None:
    """Positive but for steps that say wrong; no verdict for those that are mute."""
    if request.path == "/version":
        request.answer(200, CARD)
        return
    steps = request.body["steps"]
    words = ["Negative" if "wrong" in s else None if "mute" in s else "Positive" for s in steps]
    answer = judged(*words)
    for step, text in zip(answer["steps"], steps, strict=True):
        step["text"] = text
    request.answer(200, answer)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        server.rule = _judge
        yield server


def _file(folder: Path, count: int) -> Path:
    rows = [
        {"id": f"s{i}", "problem": f"p{i}", "steps": ["right", "wrong" if i % 2 else "right"],
         "label": 1 if i % 2 else -1, "final_answer_correct": not i % 2}
        for i in range(count)
    ]  # fmt: skip
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_becomes_labelled_steps(tmp_path: Path, server: FaultyServer) -> None:
    source = _file(tmp_path, 4)
    output = run("judge", source, "--address", server.url, "--votes", 2, "--temperature", 0)
    assert "judges with m, weight version 4" in output and "items.judged.jsonl" in output
    out = tmp_path / "items.judged.jsonl"
    rows = _rows(out)
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert [row["labels"] for row in rows] == [[True, True], [True, False]] * 2
    assert [row["first_wrong"] for row in rows] == [-1, 1, -1, 1]
    assert rows[1]["step_scores"] == [0.75, 0.25] and rows[1]["weight_version"] == 4
    asked = [request.body for _, request in server.requests if request.path == "/v1/judge"]
    assert all((one["votes"], one["temperature"]) == (2, 0) for one in asked)
    # What it writes the other stages read.
    items = read_step_items(str(out), None).items
    assert [(item.label, item.final_answer_correct) for item in items] == [
        (-1, True), (1, False)
    ] * 2  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "items.jsonl", "items.judged.jsonl"
    ]  # fmt: skip
    assert "exists already" in run("judge", source, "--address", server.url, code=2)


def test_rows_that_cannot_be_judged_are_named(tmp_path: Path, server: FaultyServer) -> None:
    source = tmp_path / "a.jsonl"
    rows = [{"problem": "p", "steps": ["right"]}, {"problem": "p", "steps": [" "]}]
    source.write_text("\n".join(json.dumps(row) for row in rows))
    output = run("judge", source, "--address", server.url, code=2)
    assert "row 1: steps.0: is ' '" in " ".join(output.split()) and "--skip-bad-rows" in output
    assert not server.requests

    def refuse(request: Request) -> None:
        if request.path == "/version" or request.body["problem"] == "short":
            _judge(request)
        else:
            request.answer(422, refusal("invalid_request", "problem: has 200 tokens"))

    server.rule = refuse
    rows = [{"problem": "long", "steps": ["right"]}, {"problem": "short", "steps": ["mute"]}]
    source.write_text("\n".join(json.dumps(row) for row in rows))
    output = run("judge", source, "--address", server.url, code=1)
    assert "row 0: problem: has 200 tokens" in " ".join(output.split())
    ((row, reason),) = [one.values() for one in _rows(tmp_path / "a.judged.rejects.jsonl")]
    assert row == 0 and "200 tokens" in reason
    (judged_row,) = _rows(tmp_path / "a.judged.jsonl")
    assert judged_row["labels"] == [None] and judged_row["step_scores"] == [None]
    assert "end the name in .jsonl" in run(
        "judge", source, "--address", server.url, "--out", tmp_path / "a.csv", code=2
    )


def test_a_start_that_was_killed_goes_on(tmp_path: Path, server: FaultyServer) -> None:
    source, killed = _file(tmp_path, 120), threading.Event()
    answered: set[str] = set()

    def eighty(request: Request) -> None:
        """Answers so many; the others wait until nobody is there."""
        if request.path != "/version":
            with server.lock:
                late = len(answered) == 80
                if not late:
                    answered.add(request.body["problem"])
            if late:
                killed.wait(60)
        _judge(request)

    server.rule = eighty
    job = JudgeJob(source, tmp_path / "out.jsonl")
    child = os.fork()
    if not child:
        try:
            judge_solutions(job, RunConfig(), server.url)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 120
    while not job.journal.is_file() or job.journal.read_bytes().count(b"\n") < 80:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with job.journal.open("ab") as file:
        file.write(b'{"key": "cut o')
    killed.set()
    assert not job.out.exists()
    again: list[str] = []

    def rest(request: Request) -> None:
        if request.path != "/version":
            again.append(request.body["problem"])
        _judge(request)

    server.rule = rest
    judge_solutions(job, RunConfig(), server.url)
    assert not answered & set(again), "what is kept is not asked again"
    assert len(answered | set(again)) == 120
    rows = _rows(job.out)
    assert [row["id"] for row in rows] == [f"s{i}" for i in range(120)]
    assert [row["first_negative"] for row in rows] == [-1, 1] * 60
    assert not job.journal.exists()


def test_what_ends_a_start_keeps_what_was_answered(tmp_path: Path, server: FaultyServer) -> None:
    source = _file(tmp_path, 100)

    def until(request: Request) -> None:
        if request.number < 60:
            _judge(request)
        else:
            request.answer(401, refusal("unauthorized", "revoked key"))

    server.rule = until
    assert "revoked key" in run("judge", source, "--address", server.url, code=2)
    journal = tmp_path / "items.judged.jsonl.part"
    kept = len(_rows(journal))
    assert 0 < kept < 60
    server.rule = _judge
    before = len(server.requests)
    run("judge", source, "--address", server.url)
    assert len(server.requests) - before == 1 + 100 - kept
    assert len(_rows(tmp_path / "items.judged.jsonl")) == 100
