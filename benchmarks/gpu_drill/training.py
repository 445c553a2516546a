"""Reinforcement learning on one card from annotated chunks, and what the judge scores."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from actors.learner.grpo_loop import KIND
from benchmarks.gpu_drill.figures import Record, read_figures
from benchmarks.gpu_drill.settings import Drill
from benchmarks.training.trl import oracle_prompts, seconds_of_a_step
from pipelines.session.session import Session
from pipelines.stages.runner import run_stage
from pipelines.stages.train import JUDGE
from stepwiser.config import RunConfig
from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.run.metrics_file import read_metrics
from stepwiser.run.store import RunStore

ANNOTATED = ("trajectories", "values", "units")
ORACLE = 512
"""Labelled prompts of the packaged task, where there are no annotated chunks."""
START_S = 40.0
"""That an evaluation takes before its first verdict on a card."""
MOST_ITEMS = 400


def training_config(drill: Drill, part: str, steps: int, checkpoint_every: int) -> RunConfig:
    """A short training whose engine and learner take turns on the card."""
    size = drill.size
    own = [
        "engine.count=1",
        "learner.workers=1",
        f"train.steps={steps}",
        f"train.prompts_per_step={size.prompts_per_step}",
        f"train.minibatch_prompts={size.prompts_per_step // 2}",
        f"train.checkpoint_every={checkpoint_every}",
        "train.evaluate_every=null",
        "train.schedule=constant",
        "train.warmup_steps=0",
        f"evaluate.limit={size.items}",
    ]
    if drill.dry:
        return drill.config(part, *own, "train.group_size=4")
    cache = int(0.25 * drill.card_bytes / 2**20)
    return drill.config(
        part,
        *own,
        "engine.gpus=0.6",
        "engine.gpu_memory_utilization=0.4",
        f"engine.kv_cache_mb={cache}",
        "learner.gpus=0.4",
        "train.colocated=true",
        "train.max_response_tokens=384",
        "judge_max_tokens=384",
    )


def write_oracle_prompts(folder: Path, seed: int) -> None:
    """Judge prompts of the packaged task, as `label` would leave them."""
    table = JudgePrompt.to_table(oracle_prompts(ORACLE, seed))
    RunStore(folder).write_table("judge_prompts", "oracle", table)


def measure_training(drill: Drill, record: Record) -> None:
    """Seconds of a step by part, and verdict share and F1 before and after."""
    folder = drill.run_dir("rl")
    annotated = drill.run_dir("engine") / "one" / "1"
    for name in ANNOTATED:
        if (annotated / name).is_dir():
            shutil.copytree(annotated / name, folder / name)
    steps = drill.size.steps
    config = training_config(drill, "rl", steps, checkpoint_every=steps)
    with Session(config) as session:
        session.start(["train", "evaluate"])
        record(labels=_label(session, drill))
        run_stage(session, "train")
        rows = read_metrics(str(session.store.curve), KIND, JUDGE)
        record(
            steps=len(rows),
            step=seconds_of_a_step([rows]),
            reward={"first": rows[0]["reward"], "last": rows[-1]["reward"]},
            logprob_gap=max(row["logprob_gap"] for row in rows),
        )
        began = time.monotonic()
        scored = run_stage(session, "evaluate")["judges"]
        rate = len(scored) * drill.size.items / (time.monotonic() - began)
        record(
            before=_scores(scored["start"]),
            after=_scores(scored[JUDGE]),
            items_per_s=rate,
        )


def _label(session: Session, drill: Drill) -> str:
    """Label what is annotated; where that is nothing, or of one kind, the packaged task's.

    So in a rehearsal, whose model writes no steps that its judge has a verdict on.
    """
    problem = "there is none"
    if (session.store.root / "units").is_dir():
        try:
            found = run_stage(session, "label")
            rows = session.store.read_table("judge_prompts", "label").to_pylist()
            kinds = {row["label"] for row in rows if row["split"] == "train"}
            if len(kinds) == 2 and not drill.dry:
                return f"of {found['chunks']} annotated chunks"
            problem = "all labels are the same"
            if drill.dry:
                problem = f"the judge has no verdict on the {found['chunks']} of the packaged model"
        except UserError as error:
            problem = str(error)
        shutil.rmtree(session.store.table_dir("judge_prompts"), ignore_errors=True)
    write_oracle_prompts(session.store.root, drill.seed)
    return f"of the packaged task, not of annotated chunks: {problem}"


def evaluation_config(drill: Drill, judge: str, count: int) -> RunConfig:
    """One engine that has the card, and so many solutions."""
    return drill.config(
        "evaluation",
        "engine.count=1",
        *drill.shares(1),
        f"judge_model={judge}",
        f"evaluate.limit={count}",
    )


def measure_evaluation(drill: Drill, record: Record) -> None:
    """F1 of the trained judge, or of the model as it is, on as many solutions as there is time."""
    trained = drill.run_dir("rl") / "models" / JUDGE
    judge = str(trained) if (trained / "config.json").is_file() else drill.model
    rate = read_figures(Path(drill.out), "rl").get("items_per_s")
    count = drill.size.items
    if rate and not drill.dry:
        count = max(20, min(MOST_ITEMS, int(0.7 * rate * (drill.seconds - START_S))))
    config = evaluation_config(drill, judge, count)
    began = time.monotonic()
    with Session(config) as session:
        session.start(["evaluate"])
        scored = run_stage(session, "evaluate")
    found: dict[str, Any] = _scores(scored["judges"]["start"])
    record(
        judge="after training" if judge == str(trained) else "the model as it is",
        items=scored["items"],
        **found,
        seconds=time.monotonic() - began,
    )


def _scores(scored: dict[str, Any]) -> dict[str, Any]:
    official = scored["single"]["official"]
    return {
        "f1": official["f1"],
        "f1_se": official["f1_standard_error"],
        "verdict_share": 1 - scored["missing_share"],
    }
