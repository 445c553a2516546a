"""Solutions to look at: chunks in the colour of the judge's score, beside what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwiser.data.records import ChunkValue, Judgement, JudgePrompt, StepItem, group_by
from stepwiser.evaluation.processbench import first_negative
from stepwiser.report.blocks import ABSENT, Section, judge_title
from stepwiser.report.reading import RunData

OF_EACH_KIND = 4
"""Solutions with a wrong step, without one, and annotated: so many of each."""

ORDER = ("judge", "judge-discriminative", "start")
"""Which judge's scores colour the chunks: the first of these that has judged."""


@dataclass(frozen=True)
class Step:
    """One chunk as shown; an absent fact is an empty string or None."""

    position: int
    text: str
    score: float | None
    verdict: bool | None
    judged: bool
    votes: str
    analysis: str
    truth: bool | None
    truth_text: str
    value: str
    others: Sequence[tuple[str, str]]

    @property
    def tint(self) -> int:
        """Percent of colour: 0 where the score is undecided, 100 at 0 and at 1."""
        return 0 if self.score is None else round(200 * abs(self.score - 0.5))

    @property
    def side(self) -> str:
        if self.score is None:
            return "none"
        return "good" if self.score >= 0.5 else "bad"

    @property
    def verdict_text(self) -> str:
        if not self.judged:
            return "not judged"
        return {True: "✓ Positive", False: "✗ Negative", None: "? no verdict"}[self.verdict]

    @property
    def mistaken(self) -> bool:
        """The verdict is not what is true of the step."""
        return self.verdict is not None and self.truth is not None and self.verdict != self.truth

    @property
    def score_text(self) -> str:
        return ABSENT if self.score is None else f"{self.score:.2f}"


@dataclass(frozen=True)
class Solution:
    """One solution with its steps."""

    kind: str
    problem: str
    outcome: str
    found: str
    found_right: bool | None
    steps: Sequence[Step]


@dataclass(frozen=True)
class Solutions:
    """Block of solutions."""

    rows: Sequence[Solution]
    judge: str
    kind: str = "solutions"


def examples(data: RunData) -> Section:
    """The first few solutions of each kind, not chosen by how the judge did on them."""
    section = Section(
        "solutions",
        "Solutions, step by step",
        missing="" if data.items or data.trajectories else "evaluate",
    )
    judge = next((name for name in (*ORDER, *data.judgements) if name in data.judgements), "")
    shown = [
        _of_item(data, item, judge, kind)
        for kind, wrong in (("has a wrong step", True), ("every step right", False))
        for item in [i for i in data.items if (i.label != -1) == wrong][:OF_EACH_KIND]
    ]
    shown += _annotated(data, judge)
    if shown:
        section.lead = (
            "The first of each kind, whatever the judge made of them. Colour and number: the score "
            f"of the {judge_title(judge)}. A click on a step opens its "
            "analysis; ≠ marks a verdict that is not true."
            if judge
            else "The first of each kind; no judge has judged them yet."
        )
    section.add(Solutions(shown, judge_title(judge)))
    return section


def _of_item(data: RunData, item: StepItem, judge: str, kind: str) -> Solution:
    truths: list[tuple[bool | None, str]] = []
    for i in range(len(item.steps)):
        if item.label == -1 or i < item.label:
            truths.append((True, "✓ right"))
        elif i == item.label:
            truths.append((False, "✗ first wrong step"))
        else:
            truths.append((None, "after the error"))
    rows = data.judgements.get(judge, {})
    found = [rows.get((item.id, i)) for i in range(len(item.steps))]
    found_text, found_right = "", None
    if any(found):
        prediction = first_negative([row.verdict if row else None for row in found])
        found_right = prediction == item.label
        said = "no step" if prediction == -1 else f"step {prediction + 1}"
        true = "none is wrong" if item.label == -1 else f"the first wrong one is {item.label + 1}"
        found_text = f"{'✓' if found_right else '✗'} refuses {said}; {true}"
    outcome = "final answer right" if item.final_answer_correct else "final answer wrong"
    return Solution(
        kind,
        item.problem,
        outcome,
        found_text,
        found_right,
        [_step(data, judge, item.id, i, text, truths[i], "") for i, text in enumerate(item.steps)],
    )


def _annotated(data: RunData, judge: str) -> list[Solution]:
    """Held-out trajectories with their Monte-Carlo values; judged ones first."""
    heldout = {row.problem_id for row in data.judge_prompts if row.split == "heldout"}
    labels = {(row.trajectory_id, row.chunk_index): row for row in data.judge_prompts}
    values = group_by(data.values, "trajectory_id")
    judged = {item_id for item_id, _ in data.judgements.get(judge, {})}
    candidates = [
        trajectory
        for trajectory in data.trajectories.values()
        if trajectory.trajectory_id in values and (not heldout or trajectory.problem_id in heldout)
    ]
    candidates.sort(key=lambda t: (t.trajectory_id not in judged, t.trajectory_id))
    chosen = []
    for right in (False, True):
        chosen += [t for t in candidates if t.correct is right][: OF_EACH_KIND // 2]
    solutions = []
    for trajectory in chosen:
        by_index = {value.chunk_index: value for value in values[trajectory.trajectory_id]}
        truths = _oracle(data, trajectory.question, trajectory.chunks) or [
            _label(labels.get((trajectory.trajectory_id, i))) for i in range(len(trajectory.chunks))
        ]
        start = f"{trajectory.problem_successes}/{trajectory.problem_trials}"
        solutions.append(
            Solution(
                "annotated, held out" if heldout else "annotated",
                trajectory.question,
                f"final answer {'right' if trajectory.correct else 'wrong'}; "
                f"value before the first chunk {start}",
                "",
                None,
                [
                    _step(
                        data,
                        judge,
                        trajectory.trajectory_id,
                        i,
                        text,
                        truths[i],
                        _value(by_index.get(i), labels.get((trajectory.trajectory_id, i))),
                    )
                    for i, text in enumerate(trajectory.chunks)
                ],
            )
        )
    return solutions


def _oracle(
    data: RunData, question: str, chunks: Sequence[str]
) -> list[tuple[bool | None, str]] | None:
    """Truth of every chunk by the embedded task's oracle; None for other tasks."""
    if not data.embedded:
        return None
    from stepwiser.tasks import first_error

    try:
        wrong = first_error(question, list(chunks))
    except ValueError:
        return None  # not a problem of the embedded task after all: labels are shown instead
    known: list[tuple[bool | None, str]] = [(True, "✓ right")] * len(chunks)
    if wrong != -1:
        known[wrong:] = [(False, "✗ first wrong step")]
        known += [(None, "after the error")] * (len(chunks) - wrong - 1)
    return known


def _label(prompt: JudgePrompt | None) -> tuple[bool | None, str]:
    if prompt is None:
        return None, ""
    return prompt.label, "✓ labelled Positive" if prompt.label else "✗ labelled Negative"


def _value(value: ChunkValue | None, prompt: JudgePrompt | None) -> str:
    if value is None:
        return "not valued"
    if value.is_outcome:
        text = f"value {value.mean:.2f} (outcome)"
    else:
        interval = f"[{value.q_low:.2f}, {value.q_high:.2f}]"
        text = f"value {value.successes}/{value.trials} {interval}"
    return text if prompt is None else f"{text}, label {'+' if prompt.label else '−'}"


def _step(
    data: RunData,
    judge: str,
    item_id: str,
    index: int,
    text: str,
    truth: tuple[bool | None, str],
    value: str,
) -> Step:
    row = data.judgements.get(judge, {}).get((item_id, index))
    others = [
        (judge_title(name), _short(other))
        for name, rows in data.judgements.items()
        if name != judge and (other := rows.get((item_id, index)))
    ]
    return Step(
        position=index + 1,
        text=text,
        score=row.score if row else None,
        verdict=row.verdict if row else None,
        judged=row is not None,
        votes=_votes(row) if row else "",
        analysis=row.analysis if row else "",
        truth=truth[0],
        truth_text=truth[1],
        value=value,
        others=others,
    )


def _votes(row: Judgement) -> str:
    counts = [(row.votes.count(code), sign) for code, sign in ((1, "✓"), (0, "✗"), (-1, "?"))]
    votes = ", ".join(f"{count} {sign}" for count, sign in counts if count)
    cut = f", {row.truncated} cut at the limit" if row.truncated else ""
    return f"votes: {votes or 'none'}; {row.tokens} tokens{cut}"


def _short(row: Judgement) -> str:
    sign = {True: "✓ Positive", False: "✗ Negative", None: "? no verdict"}[row.verdict]
    return sign if row.score is None else f"{sign}, score {row.score:.2f}"
