"""What stopping early saves and costs, on values like those of the embedded task.

``python -m tests.stepwiser.annotation.stopping_simulation`` prints the table; the tests hold its
figures.

`embedded_values.txt` has 446 trajectories of the embedded task as they were annotated (M = 16,
`stop_below: 0.2`), one a line: successes of the problem's 16 responses, the outcome, the number of
chunks, and the successes of 16 completions of each annotated prefix. The counts are noisy; the true
values behind them, which the simulation draws from, are their nonparametric maximum-likelihood
distribution given the count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import (
    Question,
    StoppingPlan,
    StoppingRule,
    annotated,
    decide_labels,
    requests,
)
from stepwiser.annotation.values import RolloutCounts, ValueEstimate

REFERENCE = 256
"""Completions behind the labels that errors are counted against."""

GRID = [i / 40 for i in range(41)]


@dataclass(frozen=True)
class Simulated:
    """One trajectory with every completion that could be asked for."""

    problem: RolloutCounts
    values: list[float]
    """True values of the prefixes of all chunks but the last."""
    completions: list[list[bool]]
    correct: bool

    def path(self, made: int | Sequence[int], planned: int) -> list[RolloutCounts]:
        """The counts after so many completions of each prefix."""
        if isinstance(made, int):
            made = [made] * len(self.values)
        rows = zip(self.completions, made, strict=True)
        inner = [RolloutCounts(sum(row[:n]), n, planned) for row, n in rows]
        return [self.problem, *inner, RolloutCounts(int(self.correct), 1, 1)]


@dataclass(frozen=True)
class Figures:
    """What a plan came to, next to `fixed` with M = 16 on the same completions."""

    share: float
    """Completions, as a share of those of `fixed`."""
    agreement: float
    """Labels that `fixed` gives as well; a chunk that only one of them labels does not agree."""
    error: float
    """Labels other than those of `REFERENCE` completions."""
    fixed_error: float
    waves: float
    """Waves of a trajectory, one after the other."""
    coverage: float
    """Intervals that hold the true value."""
    bias: float
    """Mean of all completions less the true value."""
    first_bias: float
    """The same of the first wave."""


def draw(seed: int, followed: bool) -> list[Simulated]:
    """Trajectories with true values like those of the embedded task.

    Args:
        seed: of everything random.
        followed: also behind the first low value, where the embedded task stopped: what follows is
            drawn like a prefix that never succeeded. Else trajectories end there.
    """
    rng = Random(seed)
    text = Path(__file__).with_name("embedded_values.txt").read_text()
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    posterior = _true_values([count for _, _, _, *counts in rows for count in counts])
    trajectories = []
    for successes, correct, chunks, *counts in rows:
        if followed:
            counts += [0] * (chunks - 1 - len(counts))
        values = [rng.choices(GRID, posterior[count])[0] for count in counts]
        trajectories.append(
            Simulated(
                RolloutCounts(successes, 16, 16),
                values,
                [[rng.random() < q for _ in range(REFERENCE)] for q in values],
                bool(correct),
            )
        )
    return trajectories


def _true_values(counts: Sequence[int]) -> list[list[float]]:
    """For 0..16 successes, weights of `GRID`: the distribution most likely to give such counts."""
    shares = [counts.count(k) / len(counts) for k in range(17)]
    likelihood = [[math.comb(16, k) * q**k * (1 - q) ** (16 - k) for q in GRID] for k in range(17)]
    weights = [1 / len(GRID)] * len(GRID)
    posterior: list[list[float]] = []
    for _ in range(300):  # expectation–maximization
        posterior = []
        for row in likelihood:
            joint = [w * x for w, x in zip(weights, row, strict=True)]
            posterior.append([x / sum(joint) for x in joint])
        weights = [
            sum(share * row[g] for share, row in zip(shares, posterior, strict=True))
            for g in range(len(GRID))
        ]
    return posterior


def simulate(plan: StoppingPlan, trajectories: Sequence[Simulated]) -> Figures:
    """Follow a plan to its end on every trajectory; it must ask about one question."""
    (question,) = plan.questions
    fixed = StoppingPlan(StoppingRule.FIXED, 16, 16, stop_below=plan.stop_below)
    made_in_all = fixed_in_all = waves = 0
    labels = agreeing = wrong = fixed_wrong = 0
    rolled = covered = 0
    bias = first_bias = 0.0
    for trajectory in trajectories:
        made, rounds = follow(plan, trajectory)
        fixed_made, _ = follow(fixed, trajectory)
        made_in_all += sum(made)
        fixed_in_all += sum(fixed_made)
        waves += rounds
        path, fixed_path = trajectory.path(made, plan.planned), trajectory.path(fixed_made, 16)
        reach = annotated(fixed, fixed_path)
        ours = decide_labels(question, path[: annotated(plan, path) + 1], plan.error_bound)
        theirs = decide_labels(question, fixed_path[: reach + 1])
        assert None not in ours and None not in theirs
        truth = decide_labels(question, trajectory.path(REFERENCE, REFERENCE)[: reach + 1])
        labels += max(len(ours), len(theirs))
        agreeing += _same(ours, theirs)
        wrong += min(len(ours), len(truth)) - _same(ours, truth)
        fixed_wrong += min(len(theirs), len(truth)) - _same(theirs, truth)
        rows = zip(trajectory.values, trajectory.completions, path[1:-1], strict=True)
        for value, completions, counts in rows:
            if counts.trials:
                rolled += 1
                low, high = ValueEstimate(counts.successes, counts.trials).interval()
                covered += low - 1e-9 <= value <= high + 1e-9
                bias += counts.successes / counts.trials - value
                first_bias += sum(completions[: plan.wave]) / plan.wave - value
    return Figures(
        share=made_in_all / fixed_in_all,
        agreement=agreeing / labels,
        error=wrong / labels,
        fixed_error=fixed_wrong / labels,
        waves=waves / len(trajectories),
        coverage=covered / rolled,
        bias=bias / rolled,
        first_bias=first_bias / rolled,
    )


def follow(plan: StoppingPlan, trajectory: Simulated) -> tuple[list[int], int]:
    """Completions made of each prefix, and in how many waves."""
    made = [0] * len(trajectory.values)
    waves = 0
    while wanted := requests(plan, trajectory.path(made, plan.planned)):
        waves += 1
        for position, more in wanted.items():
            assert more > 0
            made[position - 1] += more
    return made, waves


def _same(one: Sequence[object], other: Sequence[object]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=False))


QUESTIONS = (
    Question(LabelRule.ABS_Q),
    Question(LabelRule.REL_EFFECTIVE, alpha=0.4),
    Question(LabelRule.REL_EFFECTIVE, alpha=0.8),
    Question(LabelRule.REL_RATIO, gamma=0.7),
)


def main() -> None:
    """Print the table."""
    print("values             rule                                     stopping         "
          "share  agree  error (fixed)    waves  cover   bias")  # fmt: skip
    for followed, stop_below in ((False, 0.0), (True, 0.0), (False, 0.35)):
        trajectories = draw(0, followed)
        for question in QUESTIONS:
            for rule, planned, bound in (
                (StoppingRule.EXACT, 16, 0.0),
                (StoppingRule.SEQUENTIAL, 16, 0.05),
                (StoppingRule.SEQUENTIAL, 16, 0.2),
                (StoppingRule.SEQUENTIAL, 64, 0.05),
                (StoppingRule.SEQUENTIAL, 64, 0.1),
            ):
                plan = StoppingPlan(rule, planned, 4, bound, stop_below, (question,))
                f = simulate(plan, trajectories)
                values = "followed to the end" if followed else f"ending low, {stop_below:g}"
                name = f"{rule} {planned} {bound:g}" if bound else str(rule)
                print(
                    f"{values:18} {question!s:40} {name:16} {f.share:.3f}  {f.agreement:.3f}  "
                    f"{f.error:.4f} ({f.fixed_error:.4f})  {f.waves:5.1f}  {f.coverage:.3f}  "
                    f"{f.bias:+.3f}"
                )


if __name__ == "__main__":
    main()
