"""The label stage with a critic behind a URL: real stage, real HTTP, given values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.session.session import Session
from pipelines.stages.runner import run_stage
from stepwiser.annotation.judge_prompts import CONTRADICTED
from stepwiser.config import RunConfig, load_config
from stepwiser.config.impossible import refuse_impossible
from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.report import build_report
from stepwiser.run.resource_plan import plan_stage
from stepwiser.run.store import RunStore
from tests.stepwiser.run.annotated_run import trajectory, values, write_unit
from tests.support.chat_server import ChatServer, chat_server, refused, said
from tests.support.paths import ROOT

EMBEDDED = ROOT / "configs" / "embedded.yaml"
TRAJECTORIES = 12


def _config(folder: Path, **critic: Any) -> RunConfig:
    raw = load_config(EMBEDDED, [f"run_dir={folder}"]).model_dump(mode="json")
    raw["label"] |= {"critic": critic, "heldout_share": 0.3, "balance": False}
    raw["label"] |= {"minimum_previous_value": 0.0}
    raw["annotate"] |= {"rollouts": 4, "responses": 4}
    raw["data"] |= {"source": "problems.jsonl"}  # no oracle for these
    raw["cluster"] |= {"cpus": 2}
    return RunConfig.model_validate(raw)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


def _label(config: RunConfig) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=200, force_terminal=False)
    with Session(config, console) as session:
        session.start(["label"])
        return run_stage(session, "label"), console.export_text()


@pytest.mark.slow
def test_contradicted_labels_are_left_out(server: ChatServer, tmp_path: Path) -> None:
    config = _config(tmp_path, model="m", kind="endpoint", url=server.url)
    store = RunStore(tmp_path).open(config)
    rows = []
    for number in range(TRAJECTORIES):
        row = trajectory(f"t{number}")
        rows.append((row, values(row, [4, 1, 0])))
    write_unit(store, "aaaa", rows)

    def rule(body: dict[str, Any], number: int) -> Any:
        # Of three chunks: contradicts the last, fails on the second, agrees with the first.
        text = body["messages"][-1]["content"]
        chunks = [chunk.strip() for chunk in rows[0][0].chunks]
        last = max(range(3), key=lambda i: text.rfind(chunks[i]))
        return refused(400, "no") if last == 1 else said("Fine. \\boxed{Positive}")

    server.rule = rule
    metrics, shown = _label(config)
    critic = metrics["critic"]
    assert (critic["chunks"], critic["verdicts"]) == (3 * TRAJECTORIES, 2 * TRAJECTORIES)
    assert critic["failed"] == critic["left_out"] == TRAJECTORIES
    assert critic["agreement"] == pytest.approx(0.5)
    assert (critic["passed_positive"], critic["found_negative"]) == (1.0, 0.0)
    prompts = JudgePrompt.from_table(store.read_table("judge_prompts", "label"))
    by_split = {
        name: {p.chunk_index for p in prompts if p.split == name}
        for name in ("train", CONTRADICTED)
    }
    assert by_split == {"train": {0, 1}, CONTRADICTED: {2}}
    assert f"{TRAJECTORIES} chunks are left out: the critic contradicts" in shown
    assert "A critic of the labels" in Path(build_report(store)).read_text()

    # Another start asks only what failed.
    before = len(server.asked)
    server.rule = lambda body, number: said("\\boxed{Negative}")
    again, _ = _label(config)
    assert len(server.asked) - before == TRAJECTORIES
    assert again["critic"]["verdicts"] == 3 * TRAJECTORIES


def test_only_a_model_of_its_own_wants_an_engine(tmp_path: Path) -> None:
    def roles(**critic: Any) -> list[str]:
        return [need.role for need in plan_stage(_config(tmp_path, **critic), "label").needs]

    assert roles() == roles(model="m", kind="endpoint", url="http://h/v1") == ["data task"]
    assert roles(model="embedded") == ["engine", "data task"]


def test_settings_that_cannot_be_are_named(tmp_path: Path) -> None:
    for critic in ({"model": "m", "kind": "endpoint"}, {"model": "m", "url": "http://h/v1"}):
        with pytest.raises(ValueError, match="an endpoint needs a URL"):
            _config(tmp_path, **critic)
    words = "label.critic.model=embedded reads labels that are there"
    with pytest.raises(UserError, match=words):
        config = load_config(EMBEDDED, ["label.critic.model=embedded", "train.live=true"])
        refuse_impossible(config, "command", ["label"])
