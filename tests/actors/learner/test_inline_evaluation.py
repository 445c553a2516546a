"""Evaluation beside the training: a real engine, a real evaluator and, in one test, a learner."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from actors.learner.inline_evaluation import InlineEvaluationOptions
from actors.learner.train import GRPOTrainOptions, train_grpo
from actors.pinned import Pinned
from actors.pool.pool import EnginePool
from actors.rollout.evaluator import (
    EVALUATION,
    EvaluationStatus,
    Evaluator,
    EvaluatorOptions,
    OneVersion,
    fitting_items,
)
from pipelines.evaluation.inline_evaluation import _fitting
from stepwiser.config import load_config
from stepwiser.data.records import JudgePrompt, StepItem
from stepwiser.errors import UserError
from stepwiser.evaluation.embedded_edits import RANGES, written
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.metrics_file import append_metrics, read_metrics
from stepwiser.run.model_exports import candidates_of, read_evaluation
from stepwiser.tasks import load_base_model_dir, make_problems
from stepwiser.tasks.arithmetic import solution_chunks
from stepwiser.training.schedule import LearningRate
from tests.support.engines import engine_options, running_pool
from tests.support.paths import ROOT
from tests.support.scripted_collector import ScriptedCollector
from tests.support.train_options import train_options

CONFIG = load_config(ROOT / "configs" / "embedded.yaml")
MODEL = load_base_model_dir()
CONTEXT = 256
TIMEOUT_S = 300.0
NAME = "judge"


def _options(folder: Path, **changes: Any) -> EvaluatorOptions:
    options = EvaluatorOptions(
        name=NAME,
        model_dir=str(MODEL),
        prompts=CONFIG.judge_prompts,
        metrics_path=str(folder / "metrics.jsonl"),
        best_dir=str(folder / f"{NAME}-best"),
        max_tokens=90,
        temperature=1.0,
        best_by="heldout_balanced",
        patience=2,
        own_engines=False,
    )
    return dataclasses.replace(options, **changes)


def _prompts(count: int = 16) -> list[JudgePrompt]:
    """Every other one is right."""
    rows = []
    for number, problem in enumerate(make_problems(count, seed=5)):
        chunk = solution_chunks(problem)[0]
        right = number % 2 == 0
        if not right:
            chunk = chunk[:-2] + str((int(chunk[-2]) + 1) % 10) + chunk[-1]
        rows.append(
            JudgePrompt(
                prompt_id=f"prompt-{number}",
                trajectory_id=f"t{number}",
                problem_id=f"problem-{number}",
                question=problem.question,
                history=[],
                chunk=chunk,
                chunk_index=0,
                label=right,
                rule="abs_q",
                value=0.5,
                previous_value=0.5,
                trials=16,
                split="heldout",
            )
        )
    return rows


# --- without Ray ---------------------------------------------------------------------------------


class _Alternating:
    """Samples of version 4, and from the second call on one of version 5 among them."""

    def __init__(self) -> None:
        self._calls = 0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        self._calls += 1
        versions = [4, 4] if self._calls == 1 else [4, 5]
        return [Sample((1,), "", "stop", weight_version=version) for version in versions]


def test_an_answer_of_another_version_is_none():
    async def scenario():
        generator = OneVersion(_Alternating(), 4)  # type: ignore[arg-type]
        assert len(await generator.generate([1], Sampling(max_tokens=1, n=2))) == 2
        with pytest.raises(RuntimeError, match="version 4 was answered with version 5:"):
            await generator.generate([1], Sampling(max_tokens=1, n=2))

    asyncio.run(scenario())


def _item(name: str, steps: int) -> StepItem:
    return StepItem(name, "ana has 2 coins.", ["buys 2+3=5"] * steps, -1, True, "nobody")


def test_an_item_fits_when_the_engines_take_all_of_its_steps():
    prompts = PromptFormat.from_model_dir(str(MODEL), CONFIG.judge_prompts)
    item = _item("three", 3)
    longest = len(prompts.judge_ids(item.problem, item.steps[:2], item.steps[2]))
    # An engine needs room for one token more than the prompt has.
    assert fitting_items(prompts, [item], longest + 1) == [item]
    assert fitting_items(prompts, [item], longest) == []
    short = _item("two", 2)
    assert fitting_items(prompts, [item, short], longest) == [short]


def test_items_that_do_not_fit_are_named_and_at_least_one_has_to():
    prompts = PromptFormat.from_model_dir(str(MODEL), CONFIG.judge_prompts)
    printed = io.StringIO()
    session: Any = SimpleNamespace(
        config=CONFIG, console=Console(file=printed, width=200), prompts=lambda start: prompts
    )
    assert CONFIG.engine.max_model_len == CONTEXT
    items = [_item("short", 1), *(_item(f"long-{i}", 100) for i in range(7))]
    assert _fitting(session, str(MODEL), items) == items[:1]
    assert "7 of 8 items do not fit engine.max_model_len=256" in printed.getvalue()
    assert "long-4 and 2 more" in printed.getvalue()
    with pytest.raises(UserError, match="none of the 7 items .* fits engine.max_model_len=256"):
        _fitting(session, str(MODEL), items[1:])
    assert _fitting(session, str(MODEL), []) == []


def _training(folder: Path, model_dir: str, **changes: Any) -> GRPOTrainOptions:
    given = {
        "output_dir": str(folder / NAME),  # the best lies beside it
        "steps": 12,
        # Every judge is as good as the one before.
        "learning_rate": LearningRate(1e-12),
        "keep": "best",
        "evaluation": InlineEvaluationOptions(every=1, shares_engines=False, may_stop=True),
    }
    return train_options(folder, model_dir, NAME, {"max_failures": 1}, **(given | changes))


def test_ranks_wait_longer_for_each_other_than_one_of_them_may_be_held_up(tmp_path):
    options = _training(tmp_path, "")
    assert options.evaluation is not None
    evaluation = dataclasses.replace(options.evaluation, timeout_s=7200.0)
    for waits in (
        options,
        dataclasses.replace(options, evaluation=evaluation, publish_timeout_s=9000.0),
    ):
        assert waits.evaluation is not None
        limit = waits.patient_group.collective_timeout_s
        assert limit > waits.evaluation.timeout_s
        assert limit > waits.publish_timeout_s
        assert limit > waits.batch_timeout_s
        assert waits.patient_group == dataclasses.replace(waits.group, collective_timeout_s=limit)


# --- with engines --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(ray_local: None) -> Iterator[EnginePool]:
    with running_pool(engine_options(MODEL, max_model_len=CONTEXT), 1) as pool:
        yield pool


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends every answer at once, and so never gives a verdict.

    Every token is one and the same direction, twice as long for the end's: nothing else is likelier
    than e^-20. (Were all tokens equally likely, one answer of some hundred would be a verdict.)
    """
    directory = tmp_path_factory.mktemp("models") / "mute"
    shutil.copytree(MODEL, directory)
    state = {
        # Layers add nothing to the tokens' direction.
        name: torch.zeros_like(value)
        if name.endswith(("o_proj.weight", "down_proj.weight"))
        else value
        for name, value in load_file(directory / "model.safetensors").items()
    }
    embedding, norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
    embedding.zero_()[:, 0] = 1.0
    embedding[json.loads((MODEL / "config.json").read_text())["eos_token_id"], 0] = 2.0
    norm.zero_()[0] = 20 / math.sqrt(len(norm))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


class _Status:
    """An evaluator, and the files that it works on."""

    def __init__(self, pool: EnginePool, folder: Path, items: int, **changes: Any) -> None:
        self.folder = folder
        self.options = _options(folder, **changes)
        self.best = Path(self.options.best_dir)
        collector = ScriptedCollector.remote(str(MODEL), heldout=_prompts())
        self.actor = Evaluator.remote(
            self.options,
            Pinned(pool.client()),
            Pinned(collector),
            Pinned(written(RANGES[0], items, 1)),
        )

    def candidate(self, model: Path, version: int) -> Path:
        directory = self.folder / "candidates" / f"step-{version}"
        shutil.copytree(model, directory)
        return directory

    def evaluate(self, version: int, candidate: Path) -> EvaluationStatus:
        call = self.actor.evaluate.remote(version, str(candidate))
        status: EvaluationStatus = ray.get(call, timeout=TIMEOUT_S)
        assert not candidate.exists()
        return status

    def known(self, version: int) -> EvaluationStatus:
        return ray.get(self.actor.status.remote(version), timeout=TIMEOUT_S)

    def lines(self) -> dict[int, dict[str, Any]]:
        rows = read_metrics(self.options.metrics_path, EVALUATION, NAME)
        return {row["version"]: row for row in rows}

    def end(self) -> None:
        self.actor.__ray_terminate__.options(max_task_retries=0).remote()


def _same_weights(a: Path, b: Path) -> bool:
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def _publish(pool: EnginePool, model: Path, version: int) -> None:
    asyncio.run(pool.update_weights(str(model), version, TIMEOUT_S))


@pytest.mark.slow
def test_shared_engines_score_the_version_they_have(pool, mute, tmp_path):
    ours = _Status(pool, tmp_path, items=6, items_too_long=2)
    _publish(pool, MODEL, 3)
    assert ours.evaluate(3, ours.candidate(MODEL, 3)) == EvaluationStatus(known=True, stop=False)
    line, best = ours.lines()[3], read_evaluation(str(ours.best))
    assert line["step"] == 2  # whose weights these are
    assert best is not None and best.items() <= line.items()
    assert line["heldout_prompts"] == 16
    assert 0 < line["heldout_balanced"] <= 1
    assert line["heldout_balanced"] == (line["heldout_positive"] + line["heldout_negative"]) / 2
    assert (line["processbench_items"], line["processbench_too_long"]) == (6, 2)
    assert 0 <= line["processbench_f1"] <= 1
    assert _same_weights(ours.best, MODEL)

    # Two evaluations without a new best are enough.
    for version, stop in ((4, False), (5, True)):
        _publish(pool, mute, version)
        assert ours.evaluate(version, ours.candidate(mute, version)) == EvaluationStatus(True, stop)
        assert ours.lines()[version]["heldout_balanced"] == 0
        assert read_evaluation(str(ours.best)) == best
    assert _same_weights(ours.best, MODEL)

    # A restarted one knows the best so far and what has come since.
    ray.kill(ours.actor, no_restart=False)
    assert ours.known(5) == EvaluationStatus(known=True, stop=True)
    assert ours.known(4) == EvaluationStatus(known=True, stop=False)

    # The engines have other weights than those it was asked about.
    late = ours.candidate(MODEL, 6)
    with pytest.raises(RuntimeError, match="weight version 6 was answered with version 5:"):
        ours.evaluate(6, late)
    assert late.is_dir() and read_evaluation(str(late)) is None
    assert not ours.known(6).known
    assert sorted(ours.lines()) == [3, 4, 5]
    ours.end()


@pytest.mark.slow
def test_engines_of_its_own_get_the_judge_and_have_it_again_after_a_death(pool, mute, tmp_path):
    ours = _Status(
        # So many that an F1 of 0, which the untrained judge has of few, does not come by chance.
        pool,
        tmp_path,
        items=80,
        own_engines=True,
        best_by="processbench_f1",
        patience=None,
    )
    assert ours.evaluate(1, ours.candidate(mute, 1)) == EvaluationStatus(known=True, stop=False)
    assert (ours.lines()[1]["processbench_f1"], ours.lines()[1]["heldout_balanced"]) == (0, 0)

    # The directory has moved: what the engine loads when it is back is a copy.
    (engine,) = pool.actors
    os.kill(ray.get(engine.ready.remote(), timeout=TIMEOUT_S), signal.SIGKILL)
    answer = asyncio.run(asyncio.wait_for(pool.generate([5, 6], Sampling(max_tokens=2)), TIMEOUT_S))
    assert answer[0].weight_version == 1

    ours.evaluate(2, ours.candidate(MODEL, 2))
    best = read_evaluation(str(ours.best))
    assert best is not None and best["version"] == 2 and best["processbench_f1"] > 0
    assert best.items() <= ours.lines()[2].items()
    assert _same_weights(ours.best, MODEL)

    # Better by another figure than the one that counts; its own scores say so, as those of a
    # judge that an evaluator had scored before it died.
    third = ours.candidate(mute, 3)
    scores = '{"version": 3, "heldout_balanced": 1.0, "processbench_f1": 0.0}'
    (third / "evaluation.json").write_text(scores)
    ours.evaluate(3, third)
    assert ours.lines()[3]["heldout_balanced"] == 1
    assert read_evaluation(str(ours.best)) == best
    ours.end()


@pytest.mark.slow
def test_training_ends_without_a_new_best_and_keeps_the_best(pool, mute, tmp_path):
    ours = _Status(pool, tmp_path, items=2, own_engines=True)
    # The learner dies on its way: its successor knows the best and the evaluation after it.
    collector = ScriptedCollector.remote(str(mute), vocabulary=70, fail_at=2)
    options = _training(tmp_path, str(mute))
    for step in range(9):  # of a run that got further and died before its first checkpoint
        append_metrics(options.metrics_path, "train", NAME, {"step": step})
    seen: list[dict[str, Any]] = []
    described = []
    result = train_grpo(
        options,
        collector,
        seen.append,
        ours.actor,
        lambda place, version: described.append((Path(place).name, version)),
    )
    # No judge is better than the first. That the third is not may be known a step later.
    assert result.steps in (3, 4)
    assert [line["step"] for line in result.metrics] == list(range(result.steps))
    assert [line["version"] for line in result.evaluations] == list(range(1, result.steps + 1))
    assert {line["kind"] for line in seen} == {"train", EVALUATION}
    published = [v for kind, v in ray.get(collector.calls.remote()) if kind == "publish"]
    assert published == [0, 1, 2, *range(2, result.steps + 1)]
    assert result.kept == "best"
    assert read_evaluation(result.model_dir) == read_evaluation(str(ours.best))
    assert (read_evaluation(str(ours.best)) or {})["version"] == 1
    assert described == [(f"{NAME}-last", result.steps), (f"{NAME}-best", 1)]
    assert not Path(candidates_of(options.best_dir)).exists()
    ours.end()
