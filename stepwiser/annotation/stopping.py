"""When a prefix has had enough rollouts: fixed, exact and sequential stopping (paper section 3.2).

The paper gives every prefix M = 16 completions. Most labels are settled long before: where 5 of 16
successes make a chunk Positive, whatever came before it, the first 5 in a row leave nothing that
the other 11 could turn. All three rules here aim at the very same thing, the label that *all
planned* completions would give, and differ in what they take for settled:

- ``fixed``: nothing is, before the last completion.
- ``exact``: what no outcome of the missing completions can change. Its labels are those of
  ``fixed``, one by one.
- ``sequential``: what the missing completions change with probability at most ``error_bound``, by
  the beta-binomial predictive distribution. So a prefix may be planned with more completions than
  it is likely to need, and the undecided ones get what the others leave.

Everything is a pure function of the rollout counts of one trajectory, the *path* Q_0, Q_1 … Q_n:
the problem's own responses, each chunk's prefix, and the outcome that the last chunk holds. Which
completions arrived first does not matter, and the label stage asks the same functions again.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, pairwise

from stepwiser.annotation.label_rules import LabelRule, label_chunks, label_if_decided
from stepwiser.annotation.values import PRIOR, RolloutCounts
from stepwiser.config.annotation import AnnotateConfig, LabelConfig, RuleConfig
from stepwiser.data.records import ChunkValue, Trajectory

ValuePath = Sequence[RolloutCounts]
"""Q_0 … Q_n of one trajectory; the first and the last have nothing missing."""


class StoppingRule(StrEnum):
    """What lets a prefix go before all of its planned completions are made."""

    FIXED = "fixed"
    EXACT = "exact"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True)
class Question:
    """A label that will be asked for: the rule, and after which prefixes no chunk is labelled."""

    rule: LabelRule
    alpha: float = 0.8
    gamma: float = 0.7
    best_of: int = 4
    minimum_previous_value: float = 0.0
    """Chunks from the first one that follows a prefix valued below this have no label."""

    @classmethod
    def of(cls, config: RuleConfig) -> Question:
        """The rule of a configuration, without what else its section holds."""
        return cls(
            LabelRule(config.rule),
            alpha=config.alpha,
            gamma=config.gamma,
            best_of=config.best_of,
            minimum_previous_value=config.minimum_previous_value,
        )

    def __str__(self) -> str:
        names = self.rule.definition.parameters
        parameters = ", ".join(f"{name}={getattr(self, name):g}" for name in names)
        return f"{self.rule}({parameters})" if parameters else str(self.rule)


def label_questions(label: LabelConfig) -> tuple[Question, ...]:
    """The rule that labels, and those that have to agree with it (`label.agree_with`)."""
    own = Question.of(label)
    end = own.minimum_previous_value
    others = (replace(Question.of(rule), minimum_previous_value=end) for rule in label.agree_with)
    return (own, *others)


@dataclass(frozen=True)
class StoppingPlan:
    """How the prefixes of a run are rolled out."""

    rule: StoppingRule
    planned: int
    """M: completions behind the label that is aimed at, and the most a prefix gets."""
    wave: int
    """Most completions of one request for a prefix."""
    error_bound: float = 0.0
    """Largest probability that what is taken for settled is not so after all of them."""
    stop_below: float = 0.0
    """A trajectory is left after the first chunk valued below this; 0 follows all to their end."""
    questions: tuple[Question, ...] = ()


def stopping_plan(annotate: AnnotateConfig, label: LabelConfig) -> StoppingPlan:
    """The plan that a configuration asks for; where no rules are listed, those of `label`."""
    stopping = StoppingRule(annotate.stopping)
    if stopping is StoppingRule.FIXED:
        return StoppingPlan(
            stopping, annotate.rollouts, wave=annotate.rollouts, stop_below=annotate.stop_below
        )
    sequential = stopping is StoppingRule.SEQUENTIAL
    return StoppingPlan(
        rule=stopping,
        planned=(sequential and annotate.max_rollouts) or annotate.rollouts,
        wave=annotate.wave,
        error_bound=annotate.error_bound if sequential else 0.0,
        stop_below=annotate.stop_below,
        questions=tuple(map(Question.of, annotate.rules)) or label_questions(label),
    )


def requests(plan: StoppingPlan, path: ValuePath, in_flight: Container[int] = ()) -> dict[int, int]:
    """How many completions to ask for next, by position in the path; empty when all is settled.

    Chunks behind one that may still turn out to be below ``stop_below`` wait for it; all others
    are asked for together. A decision that hangs on two prefixes is pursued at the one whose
    completions are expected to settle it, and by no more than that takes, up to a wave: what is
    settled by 2 more successes is not asked for 4 completions.

    Args:
        plan: the rule and what it needs.
        path: rollout counts of Q_0 … Q_n.
        in_flight: positions with completions under way, which are not asked for again; decisions
            that hang on them wait.

    With nothing in flight, an empty answer is final: every label, and the trajectory's end, is
    settled, and asking again changes nothing.
    """
    reach = annotated(plan, path)
    rolled = [i for i in range(1, min(reach + 1, len(path) - 1)) if i not in in_flight]
    if plan.rule is StoppingRule.FIXED:
        return {i: path[i].missing for i in rolled if path[i].missing}
    # Whatever it takes: the prior alone settles nothing, and the first wave, whose size owes
    # nothing to how it turns out, is what unbiased means are made of.
    first = first_wave(plan)
    asked = {i: min(first, path[i].planned) for i in rolled if path[i].trials == 0}
    started = frozenset(asked)
    for decision in _unsettled(plan, path, reach):
        if any(i in in_flight or i in started for i in decision.positions):
            continue
        for i in _decisive(plan, path, decision):
            asked[i] = max(asked.get(i, 0), _wave(plan, path, decision, i))
    return asked


def first_wave(plan: StoppingPlan) -> int:
    """Completions of a prefix of which nothing is known.

    Where labels are exact, no more than the quickest of them may take, but two: one success settles
    Abs-Q, and a whole wave would be most of what its prefixes need. Where an error is allowed a
    whole wave, which outweighs the prior.
    """
    if plan.error_bound:
        return plan.wave
    quickest = (_least_successes(q, plan.planned, plan.planned)[-1] for q in plan.questions)
    return min(plan.wave, max(2, min(quickest, default=plan.wave)))


def annotated(plan: StoppingPlan, path: ValuePath) -> int:
    """How many leading chunks certainly get a value: up to the first that may be the last one."""
    last = len(path) - 1
    if plan.stop_below == 0.0:
        return last
    inner = range(1, last)
    ends = (
        i for i in inner if decide_below(path[i], plan.stop_below, plan.error_bound) is not False
    )
    return next(ends, last)


def decide_labels(
    question: Question, path: ValuePath, error_bound: float = 0.0
) -> list[bool | None]:
    """Labels of the chunks that get one, in order; None where the counts do not settle it.

    They end before the first chunk that follows a prefix below ``minimum_previous_value``, and
    with a None where that itself is not settled.
    """
    answers: list[bool | None] = []
    for before, current in pairwise(path):
        low = decide_below(before, question.minimum_previous_value, error_bound)
        if low:
            break
        if low is None:
            return [*answers, None]
        answers.append(decide_label(question, before, current, error_bound))
    return answers


def trajectory_labels(
    question: Question, trajectory: Trajectory, values: Sequence[ChunkValue]
) -> list[bool | None]:
    """Labels of the valued chunks of a trajectory, as `decide_labels` gives them.

    Args:
        question: the rule, and where labels end.
        trajectory: for Q_0.
        values: of its leading chunks, in order.
    """
    path = [
        RolloutCounts(
            trajectory.problem_successes, trajectory.problem_trials, trajectory.problem_trials
        ),
        *(RolloutCounts(value.successes, value.trials, value.planned) for value in values),
    ]
    return decide_labels(question, path, max((v.error_bound for v in values), default=0.0))


def decide_below(counts: RolloutCounts, threshold: float, error_bound: float = 0.0) -> bool | None:
    """Whether the value of all planned completions is below ``threshold``; None if not settled."""
    low, high = counts.bounds
    if high < threshold:
        return True
    if low >= threshold:
        return False
    if error_bound == 0.0:
        return None
    chances = counts.predictive()
    share = math.fsum(
        chance
        for more, chance in enumerate(chances)
        if (counts.successes + more) / counts.planned < threshold
    )
    return _settled(share, error_bound)


def decide_label(
    question: Question, before: RolloutCounts, current: RolloutCounts, error_bound: float = 0.0
) -> bool | None:
    """Label that all planned completions of Q_{i−1} and Q_i give a chunk; None if not settled."""
    decided = label_if_decided(
        question.rule,
        before.bounds,
        current.bounds,
        alpha=question.alpha,
        gamma=question.gamma,
        best_of=question.best_of,
    )
    if decided is not None or error_bound == 0.0:
        return decided
    return _settled(positive_probability(question, before, current), error_bound)


def positive_probability(
    question: Question, before: RolloutCounts, current: RolloutCounts
) -> float:
    """Probability that all planned completions of both prefixes make the chunk's label Positive."""
    least = _least_successes(question, before.planned, current.planned)[before.successes :]
    reached = (0.0, *accumulate(reversed(current.predictive())))[::-1]
    total = 0.0
    for chance, needed in zip(before.predictive(), least, strict=False):
        more = max(0, needed - current.successes)
        total += chance * (reached[more] if more < len(reached) else 0.0)
    return min(1.0, total)


@lru_cache(maxsize=256)
def _least_successes(question: Question, before: int, current: int) -> tuple[int, ...]:
    """For 0..before successes of Q_{i−1}: fewest of ``current`` that make the label Positive."""

    def positive(old: int, new: int) -> bool:
        (answer,) = label_chunks(
            question.rule,
            [new / current],
            old / before,
            alpha=question.alpha,
            gamma=question.gamma,
            best_of=question.best_of,
        )
        return answer

    least = []
    new = 0
    for old in range(before + 1):  # every rule falls with Q_{i−1}, so the least only rises
        while new <= current and not positive(old, new):
            new += 1
        least.append(new)
    return tuple(least)


@dataclass(frozen=True)
class _IsLabel:
    """Which label a chunk gets."""

    question: Question
    chunk: int

    @property
    def positions(self) -> tuple[int, ...]:
        previous = self.question.rule.definition.reads_previous
        return (self.chunk - 1, self.chunk) if previous else (self.chunk,)

    def settled(self, path: ValuePath, error_bound: float) -> bool:
        before, current = path[self.chunk - 1], path[self.chunk]
        return decide_label(self.question, before, current, error_bound) is not None


@dataclass(frozen=True)
class _IsBelow:
    """Whether a value is below a threshold."""

    threshold: float
    chunk: int

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.chunk,)

    def settled(self, path: ValuePath, error_bound: float) -> bool:
        return decide_below(path[self.chunk], self.threshold, error_bound) is not None


_Decision = _IsLabel | _IsBelow


def _unsettled(plan: StoppingPlan, path: ValuePath, reach: int) -> Iterator[_Decision]:
    """What is open, as far as it is known to matter."""
    thresholds: set[_IsBelow] = set()
    if plan.stop_below > 0.0 and 0 < reach < len(path) - 1:
        thresholds.add(_IsBelow(plan.stop_below, reach))
    for question in plan.questions:
        for chunk in range(1, reach + 1):
            # Where no label may follow, the labels behind wait.
            minimum = question.minimum_previous_value
            low = decide_below(path[chunk - 1], minimum, plan.error_bound)
            if low is None:
                thresholds.add(_IsBelow(minimum, chunk - 1))
            if low is not False:
                break
            decision = _IsLabel(question, chunk)
            if not decision.settled(path, plan.error_bound):
                yield decision
    yield from (t for t in thresholds if not t.settled(path, plan.error_bound))


def _decisive(plan: StoppingPlan, path: ValuePath, decision: _Decision) -> list[int]:
    """Prefixes whose completions to pursue: of two the chunk's own, if it is likely to do."""
    candidates = [i for i in decision.positions if path[i].missing]
    for i in reversed(candidates):
        counts = path[i]
        more = round(_rate(counts) * counts.missing)
        if decision.settled(_with(path, i, more, counts.missing - more), plan.error_bound):
            return [i]
    return candidates


def _wave(plan: StoppingPlan, path: ValuePath, decision: _Decision, position: int) -> int:
    """Completions to ask for next, at most a wave.

    As many as are expected to settle the decision. Where labels are exact the fraction is dropped,
    as what comes after that is made in vain; where an error is allowed it is rounded up, as every
    further look is a chance to err.
    """
    counts = path[position]
    rate = _rate(counts)
    size = min(plan.wave, counts.missing)
    for run in range(1, size):
        for chance, more in ((rate, (run, 0)), (1.0 - rate, (0, run))):
            enough = (math.ceil if plan.error_bound else math.floor)(run / chance)
            if enough < size and decision.settled(_with(path, position, *more), plan.error_bound):
                size = enough
    return size


def _rate(counts: RolloutCounts) -> float:
    """Posterior mean of a prefix's true value, strictly between 0 and 1."""
    a, b = PRIOR
    return (counts.successes + a) / (counts.trials + a + b)


def _with(path: ValuePath, position: int, successes: int, failures: int) -> ValuePath:
    changed = list(path)
    changed[position] = path[position].plus(successes, failures)
    return changed


def _settled(probability: float, error_bound: float) -> bool | None:
    if min(probability, 1.0 - probability) > error_bound:
        return None
    return probability > 0.5
