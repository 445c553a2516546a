"""Trainings compared: every arm on every seed, from the same labels, and the table of it.

A seed has a folder of its own. What its arms have in common is made once and linked into each run
directory, so that any of them can be looked at, or gone on with, like any other run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError
from rich.console import Console
from rich.markup import escape

from pipelines.evaluation.items import evaluation_items
from pipelines.evaluation.judge_specs import JudgeSpec, make_judge
from pipelines.monitoring.formatting import plus_minus, titled_table
from pipelines.monitoring.progress import make_console
from pipelines.session.run_models import RunModels
from pipelines.session.session import Session
from pipelines.stages.runner import run_stage
from pipelines.training.baselines import DISCRIMINATIVE, JUDGE, judge_start
from stepwiser.config import RunConfig
from stepwiser.config.impossible import refuse_impossible
from stepwiser.data.records import Judgement, StepItem
from stepwiser.errors import UserError
from stepwiser.evaluation.scoring import judge_items, score_judge
from stepwiser.report.ablation import MAIN, TABLE, Ablation, gap_text, reports
from stepwiser.run.store import FETCHES, RunStore, read_json
from stepwiser.storage.folder import writing
from stepwiser.storage.interface import Storage
from stepwiser.storage.places import absolute
from stepwiser.storage.trees import LIST
from stepwiser.training.ablation import (
    SHARED,
    STAGES,
    START,
    Arm,
    arm_config,
    arms_of,
    difference,
    seed_config,
    seed_dir,
    summarize,
)

PARTS = {
    "segment": ("models/policy", "metrics/segment.json"),
    "annotate": ("trajectories", "values", "units", "annotate", "metrics/annotate.json"),
    "label": ("judge_prompts", "metrics/label.json"),
}
"""What a stage leaves that an arm takes over."""

RESULT = "ablation"
"""Metrics of a run directory that belongs to an ablation."""


def run_ablation(config: RunConfig, only: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Run what is not finished yet, write the reports; returns figures by arm and seed.

    Raises UserError when arms failed, after the others have run.
    """
    arms = arms_of(config, only)
    refuse_impossible(config, "ablate", ("ablate",))
    store = RunStore(absolute(config.run_dir))
    seeds = range(config.seed, config.seed + config.ablate.seeds)
    console = make_console()
    store.refuse_other(config)
    models = RunModels(config, store, console)
    models.check(STAGES)
    store.open(config)
    models.record()
    config = models.pinned()  # every seed has the same, whenever it starts
    failed: list[str] = []
    for seed in seeds:
        failed += _run_seed(config, seed, arms, console)
    ablation = _collect(config, seeds)
    for name, text in reports(ablation).items():
        with store.writing(f"reports/{name}") as temporary:
            temporary.write_text(text, "utf-8")
        if out is not None:
            with writing(out / name) as temporary:
                temporary.write_text(text, "utf-8")
    for place in (store.called("reports"), *([out] if out else ())):
        console.print(f"report: {place}/{TABLE}", soft_wrap=True, highlight=False)
    _print(console, ablation)
    if failed:
        raise UserError("; ".join(failed) + "; the same command tries them again")
    return dict(ablation.results)


def _run_seed(config: RunConfig, seed: int, arms: Sequence[Arm], console: Console) -> list[str]:
    """Run the arms of a seed that are not finished; returns what failed, in words.

    One Ray and the same engines serve all of them: on a laptop starting both takes as long as a
    small training. Only what comes after an arm that failed gets new ones, as these may be what it
    failed of.
    """
    shared = seed_config(config, seed)
    common = RunStore(absolute(shared.run_dir))
    todo = [arm for arm in arms if not _finished(arm_config(config, arm, seed))]
    if not todo and common.read_metrics(RESULT):
        console.print(f"seed {seed}: already done, kept")
        return []
    failed: list[str] = []
    left = deque(enumerate(todo, 1))
    items: list[StepItem] | None = None
    while items is None or left:
        with Session(shared, console) as session:
            if items is None:
                console.rule(f"[bold]seed {seed}: what the arms share", align="left")
                items = _share(session)
            while left:
                number, arm = left.popleft()
                words = f"seed {seed}: {arm.name} ({number} of {len(todo)})"
                console.rule(f"[bold]{words}", align="left")
                try:
                    _run_arm(session, common, arm, arm_config(config, arm, seed), items)
                except Exception as error:  # of one arm, which its neighbours need not end by
                    why = _reason(error)
                    if not isinstance(error, UserError):
                        console.print(traceback.format_exc(), markup=False, highlight=False)
                    console.print(f"[red]{escape(f'{words} failed: {why}')}", highlight=False)
                    failed.append(f"arm {arm.name} of seed {seed} failed: {why}")
                    break
    return failed


def _share(session: Session) -> list[StepItem]:
    """Make what all arms start from, and score the judge before training; returns what to judge."""
    session.start(STAGES[:-1])
    _run(session, STAGES[:-1])
    items = evaluation_items(session)
    if not session.store.read_metrics(RESULT):
        start = JudgeSpec(START, judge_start(session), "generative")
        session.store.write_metrics(RESULT, _score(session, start, items))
    return items


def _reason(error: Exception) -> str:
    """Why an arm failed: the error itself, where Ray gives an account of a remote one."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"


def _run_arm(
    session: Session, common: RunStore, arm: Arm, config: RunConfig, items: list[StepItem]
) -> None:
    began = time.monotonic()
    session.turn(config)
    own = STAGES[STAGES.index(arm.own_stage) :]
    for stage in STAGES[: STAGES.index(arm.own_stage)]:
        for part in PARTS[stage]:
            _take_over(common, session.store, part)
    session.start(own)
    _run(session, own)
    name, kind = (
        (DISCRIMINATIVE, "discriminative")
        if config.train.method == "discriminative"
        else (JUDGE, "generative")
    )
    spec = JudgeSpec(name, session.store.find_model(name, "train"), kind)
    result = _score(session, spec, items)
    cost = session.store.read_metrics("cost-train") or {}
    result["train_minutes"] = cost["seconds"] / 60
    result["minutes"] = (time.monotonic() - began) / 60
    session.store.write_metrics(RESULT, result)


def _run(session: Session, stages: Sequence[str]) -> None:
    for stage in stages:
        if stage == "label" and session.store.read_metrics("label"):
            continue  # made by an earlier start
        run_stage(session, stage)


def _take_over(common: RunStore, arm: RunStore, part: str) -> None:
    """Link a file or a folder, or copy it in a bucket; nothing that is there is ever changed, only
    replaced."""
    if common.remote:
        _copy(common.storage, arm.storage, part)
        return
    source, target = common.root / part, arm.root / part
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _copy(source: Storage, target: Storage, part: str) -> None:
    def copy(name: str) -> None:
        with tempfile.TemporaryDirectory(prefix="stepwiser-") as folder:
            source.fetch(name, Path(folder) / "file")
            target.put(name, Path(folder) / "file")

    names = [part] if source.exists(part) else source.names(part)
    with ThreadPoolExecutor(FETCHES) as threads:
        list(threads.map(copy, (name for name in names if not name.endswith(LIST))))
    for name in names:
        if name.endswith(LIST):
            copy(name)  # says what there is, which is there by now


def _score(session: Session, spec: JudgeSpec, items: list[StepItem]) -> dict[str, Any]:
    """Figures of one judge, one judgment a step at the configured temperature, and by majority."""
    settings = session.config.evaluate
    pool = session.pool(spec.model)
    judge = make_judge(session, spec, pool, votes=settings.votes, temperature=settings.temperature)
    with session.progress(f"score {spec.name}", len(items), "solutions") as bar:
        done = lambda: bar.update(advance=1)  # noqa: E731
        rows = session.run(judge_items(judge, spec.name, items, done))
    session.store.write_table("judgements", spec.name, Judgement.to_table(rows))
    scores = score_judge(items, rows, settings.bins)
    single = scores["single"]["official"]
    return {
        MAIN: single["f1"],
        "error_accuracy": single["error_accuracy"],
        "correct_accuracy": single["correct_accuracy"],
        "majority_f1": scores["majority"]["official"]["f1"],
        "missing_share": scores["missing_share"],
        "tokens": scores["tokens_per_judgement"],
    }


def _finished(config: RunConfig) -> bool:
    """Whether an arm has its result; refuses one that another configuration made."""
    store = RunStore(absolute(config.run_dir))
    if store.read_metrics(RESULT) is None:
        return False
    store.open(config)
    return True


def _collect(config: RunConfig, seeds: Sequence[int]) -> Ablation:
    """Every finished arm of these seeds, whether or not this start was about it."""
    arms = arms_of(config)
    results: dict[str, dict[int, dict[str, float | None]]] = {}
    counts: dict[str, int] = {}
    for seed in seeds:
        for name in (*(arm.name for arm in arms), START):
            folder = SHARED if name == START else name
            found = RunStore(absolute(f"{seed_dir(config, seed)}/{folder}")).read_metrics(RESULT)
            if found:
                results.setdefault(name, {})[seed] = found
        shared = RunStore(absolute(f"{seed_dir(config, seed)}/{SHARED}"))
        counts |= _items(shared, config.evaluate.name)
    words = ", ".join(f"{count} {side}" for side, count in counts.items())
    return Ablation(
        config.name,
        config.ablate.reference,
        {arm.name: arm.changes for arm in arms},
        results,
        seeds,
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, each with labels of its own and "
        f"{words} solutions to judge; one judgment a step at temperature "
        f"{config.evaluate.temperature:g}, and the majority of {config.evaluate.votes}. ± is the "
        "standard error over seeds.",
    )


def _items(store: RunStore, name: str) -> dict[str, int]:
    """How many wrong and right solutions are judged, where they were made for the run."""
    file = store.file(f"evaluation/{name}.json")
    if not file.is_file():
        return {}
    labels = [item["label"] for item in read_json(file)]
    return {"wrong": sum(y != -1 for y in labels), "right": sum(y == -1 for y in labels)}


def _print(console: Console, ablation: Ablation) -> None:
    title = f"Ablation, seeds {', '.join(map(str, ablation.seeds))}"
    gaps = f"minus {ablation.reference} [95 %]"
    table = titled_table(title, "arm", "F1", gaps, "by seed", "minutes")
    for arm in ablation.arms:
        scores = summarize(ablation.results, arm, MAIN)
        if scores is None:
            continue
        minutes = summarize(ablation.results, arm, "minutes")
        gap = difference(ablation.results, arm, ablation.reference, MAIN)
        table.add_row(
            arm,
            plus_minus(scores.mean, scores.error),
            "-" if arm == ablation.reference else gap_text(gap),
            ", ".join(f"{value:.3f}" for value in scores.values),
            f"{minutes.mean:.1f}" if minutes else "-",
        )
    console.print(table)
