"""Annotated, labelled trajectories in the formats that other libraries train from.

Rows stream from the units of a run directory, one unit in memory at a time.

- ``hf``: a folder for ``datasets.load_from_disk``; everything that is known of a trajectory.
- ``trl``: JSON lines in TRL's stepwise-supervision format: `prompt`, `completions`, `labels`.
- ``math-shepherd``: JSON lines as in the Math-Shepherd data: `input` with the step tag after each
  step, `label` with + or - in the tag's place, and `task`.

The last two only hold steps that have a label: from the first one without (annotation stopped
there, or the label stage skips what follows a lost prefix) the trajectory is cut off.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question, trajectory_labels
from stepwiser.config.annotation import LabelConfig
from stepwiser.data.labelled_solution import STEP_TAG
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units, read_unit
from stepwiser.storage.folder import writing

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_A_TIME = 256
"""Trajectories of one Arrow batch."""


class Format(StrEnum):
    """What `export` writes."""

    HF = "hf"
    TRL = "trl"
    MATH_SHEPHERD = "math-shepherd"


@dataclass(frozen=True)
class Labelled:
    """A trajectory with the values of its leading chunks, and their labels by every rule."""

    trajectory: Trajectory
    values: Sequence[ChunkValue]
    """In chunk order; fewer than there are chunks where annotation stopped early."""
    labels: dict[LabelRule, list[bool | None]]
    """One a value; None where a rule has no label."""


def labelled_trajectories(store: RunStore, config: LabelConfig) -> Iterator[Labelled]:
    """All trajectories of the finished units, in the order of the units' names."""
    for unit in sorted(finished_units(store)):
        trajectories, values = read_unit(store, unit)
        for trajectory in trajectories:
            own = values.get(trajectory.trajectory_id, [])
            labels = {rule: labels_by(rule, trajectory, own, config) for rule in LabelRule}
            yield Labelled(trajectory, own, labels)


def labels_by(
    rule: LabelRule, trajectory: Trajectory, values: Sequence[ChunkValue], config: LabelConfig
) -> list[bool | None]:
    """Labels of one trajectory, as the label stage gives them: None where it gives none."""
    question = replace(Question.of(config), rule=rule)
    labels = trajectory_labels(question, trajectory, values)
    return [*labels, *[None] * (len(values) - len(labels))]


def _settled(rows: Iterator[Labelled], question: Question) -> Iterator[Labelled]:
    """The rows, once it is known that more rollouts would change no label of theirs."""
    for row in rows:
        if None in trajectory_labels(question, row.trajectory, row.values):
            raise UserError(
                f"labels by {question} are open in trajectory {row.trajectory.trajectory_id}: its "
                "rollouts were stopped early for other labels; export by a rule of annotate.rules"
            )
        yield row


def export(store: RunStore, form: Format, out: Path, rule: LabelRule | None = None) -> Counter[str]:
    """Write all labelled trajectories of a run.

    Args:
        store: a run directory with annotated units.
        form: which format.
        out: the folder (``hf``) or file to write; must not exist.
        rule: whose labels; by default the run's own `label.rule`.

    Returns counts: `written`, `steps`, `positive`, and why others were left out.

    Raises UserError where there is nothing to export, or `out` exists.
    """
    config = store.config()
    rule = rule or LabelRule(config.label.rule)
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out, or delete it")
    if not finished_units(store):
        raise UserError(f"{store.place} has no annotated units yet: run `stepwiser annotate` first")
    counts: Counter[str] = Counter()
    question = replace(Question.of(config.label), rule=rule)
    rows = _settled(labelled_trajectories(store, config.label), question)
    if form is Format.HF:
        _write_dataset(rows, rule, out, counts)
        return counts
    converters: dict[Format, Callable[[Labelled, LabelRule], dict[str, Any] | str]] = {
        Format.TRL: trl_row,
        Format.MATH_SHEPHERD: lambda row, rule: shepherd_row(row, rule, config.name),
    }
    with writing(out) as temporary, temporary.open("w") as file:
        for row in rows:
            made = converters[form](row, rule)
            if isinstance(made, str):
                counts[f"left out: {made}"] += 1
                continue
            _count(counts, _labelled_steps(row, rule)[1])
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    return counts


def hf_row(row: Labelled, rule: LabelRule) -> dict[str, Any]:
    """Everything that is known of a trajectory; steps are as the policy wrote them."""
    t = row.trajectory
    return {
        "trajectory_id": t.trajectory_id,
        "problem_id": t.problem_id,
        "problem": t.question,
        "answer": t.answer,
        "steps": t.chunks,
        "final_answer": t.final_answer,
        "correct": t.correct,
        "problem_successes": t.problem_successes,
        "problem_trials": t.problem_trials,
        "values": [value.mean for value in row.values],
        "successes": [value.successes for value in row.values],
        "trials": [value.trials for value in row.values],
        "is_outcome": [value.is_outcome for value in row.values],
        "rule": str(rule),
        "labels": row.labels[rule],
        **{f"labels_{name}": labels for name, labels in row.labels.items()},
    }


def trl_row(row: Labelled, rule: LabelRule) -> dict[str, Any] | str:
    """TRL's stepwise supervision; whitespace around a step goes, as TRL adds its own separator.

    Returns the reason where the trajectory has no row.
    """
    steps, labels = _labelled_steps(row, rule)
    if not steps:
        return "no step has a label"
    completions = [step.strip() for step in steps]
    return {"prompt": row.trajectory.question, "completions": completions, "labels": labels}


def shepherd_row(row: Labelled, rule: LabelRule, task: str) -> dict[str, Any] | str:
    """Math-Shepherd's text: the problem, then `Step 1: … ки`, `Step 2: … ки`, one line break each.

    Returns the reason where the trajectory has no row.
    """
    steps, labels = _labelled_steps(row, rule)
    if not steps:
        return "no step has a label"
    if any(STEP_TAG in text for text in (row.trajectory.question, *steps)):
        return f"its text holds the step tag {STEP_TAG}"
    numbered = [f"Step {i}: {step.strip()}" for i, step in enumerate(steps, start=1)]

    def text(marks: Sequence[str]) -> str:
        lines = "\n".join(f"{s} {mark}" for s, mark in zip(numbered, marks, strict=True))
        return f"{row.trajectory.question.strip()} {lines}"

    return {
        "input": text([STEP_TAG] * len(steps)),
        "label": text(["+" if label else "-" for label in labels]),
        "task": task,
    }


def _labelled_steps(row: Labelled, rule: LabelRule) -> tuple[list[str], list[bool]]:
    labels = [bool(y) for y in takewhile(lambda y: y is not None, row.labels[rule])]
    return row.trajectory.chunks[: len(labels)], labels


def _count(counts: Counter[str], labels: Sequence[bool]) -> None:
    counts.update(written=1, steps=len(labels), positive=sum(labels))


def _write_dataset(
    rows: Iterator[Labelled], rule: LabelRule, out: Path, counts: Counter[str]
) -> None:
    """One Arrow file row by row, then the folder around it; it appears whole or not at all."""
    import pyarrow as pa
    from datasets import Dataset

    schema = _hf_schema()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        stream, whole = Path(folder) / "rows.arrow", Path(folder) / "whole"
        with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while batch := list(itertools.islice(rows, ROWS_AT_A_TIME)):
                for row in batch:
                    _count(counts, [bool(y) for y in row.labels[rule] if y is not None])
                made = [hf_row(row, rule) for row in batch]
                writer.write_batch(pa.RecordBatch.from_pylist(made, schema=schema))
        Dataset.from_file(str(stream)).save_to_disk(str(whole))
        whole.rename(out)


def _hf_schema() -> pa.Schema:
    import pyarrow as pa

    bools, ints, strings = (pa.list_(kind) for kind in (pa.bool_(), pa.int64(), pa.string()))
    return pa.schema(
        {
            "trajectory_id": pa.string(),
            "problem_id": pa.string(),
            "problem": pa.string(),
            "answer": pa.string(),
            "steps": strings,
            "final_answer": pa.string(),
            "correct": pa.bool_(),
            "problem_successes": pa.int64(),
            "problem_trials": pa.int64(),
            "values": pa.list_(pa.float64()),
            "successes": ints,
            "trials": ints,
            "is_outcome": bools,
            "rule": pa.string(),
            "labels": bools,
            **{f"labels_{name}": bools for name in LabelRule},
        }
    )
