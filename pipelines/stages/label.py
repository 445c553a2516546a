"""Values into labels: one rule, a length filter, balance."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
from rich.table import Table

from pipelines.evaluation.criticism import criticise
from pipelines.monitoring.formatting import interval, number, titled_table
from pipelines.session.session import Session
from stepwiser.annotation.judge_prompts import (
    CONTRADICTED,
    DISPUTED,
    TOO_LONG,
    UNSPLIT,
    is_held_out,
    label_trajectory,
)
from stepwiser.annotation.label_rules import LabelRule, balance, class_shares
from stepwiser.annotation.stopping import (
    Question,
    label_questions,
    stopping_plan,
    trajectory_labels,
)
from stepwiser.config import PromptConfig
from stepwiser.config.annotation import LabelConfig
from stepwiser.data.records import ChunkValue, JudgePrompt, Trajectory
from stepwiser.errors import UserError
from stepwiser.evaluation.label_agreement import LabelAgreement, label_agreement
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units, read_repeats, read_summary, read_unit

TABLE = "judge_prompts"


def run(session: Session) -> dict[str, Any]:
    """Labels every valued chunk through Ray Data; writes judge_prompts/."""
    config = session.config.label
    store = session.store
    units = sorted(finished_units(store))
    if not units:
        raise UserError(f"{store.place} has no annotated units yet: run `stepwiser annotate` first")
    with session.stage("label"):
        quiet_ray_data()
        rules, unsettled = _compare_rules(session, units)
        _refuse_unsettled(session, unsettled)
        model = session.resolve(session.config.policy_model)
        labelled = (
            ray.data.from_items([{"unit": unit} for unit in units])
            .map_batches(
                _label_units,
                fn_kwargs={
                    "root": store.place,
                    "model": model,
                    "prompts": session.config.prompts,
                    "config": config,
                    "trust": session.config.trust_remote_code,
                },
                batch_format="pyarrow",
            )
            .materialize()
        )
        table = labelled.to_pandas()
        if table.empty:
            raise _nothing_to_label(store, units)
        denied: frozenset[str] = frozenset()
        critic = None
        if config.critic.model is not None:
            denied, critic = criticise(session, table[table.split == UNSPLIT].to_dict("records"))
        ids = table[["prompt_id", "problem_id", "label", "split"]]
        rows = [row for row in ids.itertuples(index=False) if row.prompt_id not in denied]
        splits, metrics = _split(rows, session.config)
        metrics["chunks"] = len(table)
        metrics["critic"] = critic
        splits |= dict.fromkeys(denied, CONTRADICTED)
        for old in store.files(TABLE, ".parquet"):
            # Another rule may have been asked for; labels cost seconds to make again.
            store.remove(f"{TABLE}/{old.name}")
        _write(
            store,
            labelled.map_batches(_with_split, fn_kwargs={"splits": splits}, batch_format="pyarrow"),
        )
        metrics["rules"] = rules
        metrics["repeats"] = [asdict(row) for row in _repeated(session, units)]
    store.write_metrics("label", metrics)
    _print(session, metrics)
    return metrics


def _nothing_to_label(store: RunStore, units: list[str]) -> UserError:
    """Why there is no prompt, with what was annotated."""
    counts: Counter[str] = Counter()
    for unit in units:
        counts.update(read_summary(store, unit)["counts"])
    return UserError(
        f"{store.place}: no chunk can be labelled. {counts['problems']} problems are annotated, "
        f"{counts['mixed_problems']} with right and wrong responses, which give "
        f"{counts['trajectories']} trajectories of {counts['chunks']} chunks. Annotate more or "
        "other problems (data.limit, data.source), with more responses (annotate.responses), or "
        "with a policy that solves some of them"
    )


def _write(store: RunStore, rows: ray.data.Dataset) -> None:
    if not store.remote:
        folder = store.table_dir(TABLE)
        folder.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(str(folder))
        return
    for part, batch in enumerate(rows.iter_batches(batch_size=None, batch_format="pyarrow")):
        store.write_table(TABLE, f"{part:06d}", batch)


def quiet_ray_data() -> None:
    """Ray Data announces every execution; the stage has its own words for that."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Not by RAY_DATA_LOGGING_CONFIG: that is read when ray.data is imported, and Ray Train has
    # imported it before this stage where stages follow each other.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@lru_cache(maxsize=1)
def _format(model: str, prompts: PromptConfig, trust: bool) -> PromptFormat:
    return PromptFormat.from_model_dir(model, prompts, trust)


def _label_units(
    batch: pa.Table, root: str, model: str, prompts: PromptConfig, config: LabelConfig, trust: bool
) -> pa.Table:
    prompt_format = _format(model, prompts, trust)
    rows: list[JudgePrompt] = []
    for unit in batch.column("unit").to_pylist():
        trajectories, values = read_unit(RunStore(root), unit)
        for trajectory in trajectories:
            rows += label_trajectory(
                trajectory, values.get(trajectory.trajectory_id, []), config, prompt_format
            )
    return JudgePrompt.to_table(rows)


def _split(rows: list[Any], config: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Split of every prompt: whole problems are held out, then each split is balanced."""
    # Sorted: Ray Data's blocks come in any order, and what balancing keeps depends on it.
    usable = sorted((row for row in rows if row.split == UNSPLIT), key=lambda row: row.prompt_id)
    problems = {row.problem_id for row in usable}
    heldout = {p for p in problems if is_held_out(p, config.label.heldout_share, config.seed)}
    splits: dict[str, str] = {}
    metrics: dict[str, Any] = {
        "rule": config.label.rule,
        "chunks": len(rows),
        "too_long": sum(row.split == TOO_LONG for row in rows),
        "disputed": sum(row.split == DISPUTED for row in rows),
        "problems": len(problems),
        "heldout_problems": len(heldout),
    }
    for name in ("train", "heldout"):
        part = [row for row in usable if (row.problem_id in heldout) == (name == "heldout")]
        before = class_shares([row.label for row in part])
        if config.label.balance and before.positive and before.negative:
            rng = random.Random(f"{config.seed}/{name}")
            # Shuffled so that the surplus that goes is not the last problems'.
            kept = balance(part, [row.label for row in part], rng)
        else:
            kept = part
        splits |= {row.prompt_id: "spare" for row in part}
        splits |= {row.prompt_id: name for row in kept}
        after = class_shares([row.label for row in kept])
        for when, shares in (("before", before), ("after", after)):
            metrics[f"{name}_{when}"] = {
                "positive": shares.positive,
                "negative": shares.negative,
                "positive_share": shares.positive_share,
            }
    if not metrics["train_after"]["positive"] or not metrics["train_after"]["negative"]:
        raise UserError(
            f"label.rule={config.label.rule} gives {metrics['train_after']['positive']} positive "
            f"and {metrics['train_after']['negative']} negative training prompts; a judge needs "
            "both: annotate more problems or choose another rule"
        )
    return splits, metrics


def _with_split(batch: pa.Table, splits: dict[str, str]) -> pa.Table:
    index = batch.schema.get_field_index("split")
    found = zip(*(batch.column(name).to_pylist() for name in ("prompt_id", "split")), strict=True)
    column = [splits.get(prompt_id, split) for prompt_id, split in found]
    return batch.set_column(index, "split", pa.array(column, pa.string()))


def _compare_rules(
    session: Session, units: list[str]
) -> tuple[list[dict[str, Any]], Counter[Question]]:
    """Class shares of all three rules on the chunks that get labels, and agreement with the oracle
    where there is one; None for a rule that early-stopped values leave open somewhere.

    And for how many chunks the rules are open that section `label` asks for.
    """
    source = session.config.annotate.source
    embedded = session.config.data.source == "embedded" and source is None
    used = Question.of(session.config.label)
    questions = {rule: replace(used, rule=rule) for rule in LabelRule}
    counts: dict[LabelRule, Counter[str]] = {rule: Counter() for rule in LabelRule}
    unsettled: Counter[Question] = Counter()
    for unit in units:
        trajectories, values = read_unit(session.store, unit)
        for trajectory in trajectories:
            own = values.get(trajectory.trajectory_id, [])
            for question in label_questions(session.config.label):
                unsettled[question] += trajectory_labels(question, trajectory, own).count(None)
            wrong_at = _oracle(trajectory) if embedded else -2
            for rule, count in counts.items():
                labels = trajectory_labels(questions[rule], trajectory, own)
                count["unsettled"] += labels.count(None)
                count["positive"] += labels.count(True)
                count["total"] += len(labels)
                if wrong_at == -2:
                    continue
                upto = labels if wrong_at == -1 else labels[: wrong_at + 1]
                count["judged"] += len(upto)
                count["agree"] += sum(y == (i != wrong_at) for i, y in enumerate(upto))
    return [_compared(rule, count) for rule, count in counts.items()], unsettled


def _repeated(session: Session, units: list[str]) -> list[LabelAgreement]:
    """How far all three rules label the chunks alike that were annotated twice."""
    trajectories: list[Trajectory] = []
    values: dict[str, list[ChunkValue]] = {}
    repeats: dict[str, list[ChunkValue]] = {}
    for unit in units:
        if again := read_repeats(session.store, unit):
            found, rows = read_unit(session.store, unit)
            trajectories += found
            values |= rows
            repeats |= again
    used = Question.of(session.config.label)
    questions = [replace(used, rule=rule) for rule in LabelRule]
    return [
        row
        for question in questions
        for row in label_agreement(question, trajectories, values, repeats)
    ]


def _compared(rule: LabelRule, count: Counter[str]) -> dict[str, Any]:
    known = not count["unsettled"]
    return {
        "rule": str(rule),
        "unsettled": count["unsettled"],
        "positive_share": count["positive"] / max(1, count["total"]) if known else None,
        "oracle_agreement": count["agree"] / count["judged"] if known and count["judged"] else None,
    }


def _refuse_unsettled(session: Session, unsettled: Counter[Question]) -> None:
    """A label that rollouts not made might change is none."""
    for question, chunks in unsettled.items():
        if not chunks:
            continue
        config = session.config
        key = "rule" if question == Question.of(config.label) else "agree_with"
        asked = stopping_plan(config.annotate, config.label).questions
        raise UserError(
            f"label.{key}={question} is open for {chunks} chunks: annotate.stopping="
            f"{config.annotate.stopping} ended their rollouts as soon as the labels asked "
            f"about were settled, {', '.join(map(str, asked)) or 'of another configuration'}. "
            "Label by one of these, or add this one to annotate.rules (or set "
            "annotate.stopping=fixed) and annotate into another run_dir"
        )


def _oracle(trajectory: Trajectory) -> int:
    from stepwiser.tasks import first_error

    return first_error(trajectory.question, trajectory.chunks)


def _print(session: Session, metrics: dict[str, Any]) -> None:
    title = f"Labels ({metrics['rule']})"
    table = titled_table(title, "split", "positive", "negative", "positive share")
    for key in ("train_before", "train_after", "heldout_before", "heldout_after"):
        row = metrics[key]
        name = key.replace("_before", ", before balancing").replace("_after", ", after")
        share = f"{row['positive_share']:.1%}" if row["positive"] + row["negative"] else "-"
        table.add_row(name, str(row["positive"]), str(row["negative"]), share)
    session.console.print(table)
    oracle = any(row["oracle_agreement"] is not None for row in metrics["rules"])
    columns = ["rule", "positive share"]
    if oracle:  # only the embedded task has one
        columns.append("agrees with the oracle up to the first error")
    rules = titled_table("All rules on the same values", *columns)
    open_rules = [row["rule"] for row in metrics["rules"] if row["unsettled"]]
    for row in metrics["rules"]:
        if row["unsettled"]:
            continue
        agree = [f"{row['oracle_agreement']:.3f}"] if oracle else []
        rules.add_row(row["rule"], f"{row['positive_share']:.1%}", *agree)
    session.console.print(rules)
    if metrics["disputed"]:
        session.console.print(
            f"  {metrics['disputed']} of {metrics['chunks']} chunks are left out: the rules of "
            "label.agree_with differ on them"
        )
    if metrics["critic"]:
        session.console.print(_critic_table(metrics["critic"]), _critic_note(metrics["critic"]))
    if metrics["repeats"]:
        session.console.print(_repeats_table(metrics["repeats"]))
    if open_rules:
        session.console.print(
            f"  not known for {', '.join(open_rules)}: rollouts stopped before (annotate.rules)"
        )


def _critic_table(row: Mapping[str, Any]) -> Table:
    columns = ("critic", "chunks", "verdicts", "same as label", "kappa", "passes +", "finds -")
    table = titled_table("A critic of the labels, 95% interval", *columns)
    table.add_row(
        row["critic"],
        str(row["chunks"]),
        str(row["verdicts"]),
        interval(row["agreement"], row["low"], row["high"]),
        number(row["kappa"]),
        number(row["passed_positive"]),
        number(row["found_negative"]),
    )
    return table


def _critic_note(row: Mapping[str, Any]) -> str:
    failed = f"; {row['failed']} answers could not be had" if row["failed"] else ""
    return (
        f"  {row['left_out']} chunks are left out: the critic contradicts their label; where it "
        f"gave no verdict the label stays{failed}"
    )


def _repeats_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("rule", "rollouts", "chunks", "same label", "kappa")
    table = titled_table("Chunks annotated twice, 95% intervals", *columns)
    for row in rows:
        table.add_row(
            row["rule"],
            str(row["rollouts"]),
            str(row["chunks"]),
            interval(row["agreement"], row["low"], row["high"]),
            number(row["kappa"]),
        )
    return table
