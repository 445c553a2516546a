"""Methods of solving on the same problems: accuracy, tokens, and the vote that costs as much.

A method's answers to a problem are independent of each other (`Solved`); of several samples of a
problem smaller sizes are their disjoint groups, so that a size needs no samples of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stepwiser.annotation.statistics import Z95, known, mean_and_error
from stepwiser.data.verifiers import AnswerChecker
from stepwiser.search.drafts import Spent, together
from stepwiser.search.policy import Accuracy, Solutions, accuracy, majority_shares, share_true
from stepwiser.search.voting import best_of_n, majority_vote, weighted_vote

T = TypeVar("T")
Key = Callable[[str], Hashable]

TITLES = {
    "chunk_reset": "chunk-reset",
    "chunk_reset_majority": "chunk-reset, majority of {}",
    "chunk_reset_weighted": "chunk-reset, weighted vote of {}",
    "best_of_n": "best of {}",
    "weighted_vote": "weighted vote of {}",
    "beam_search": "beam search of {}",
    "early_stop": "early stop of {}",
}
"""What tables call a method of a size."""


@dataclass(frozen=True)
class Contender:
    """A solution that may be picked, or may vote."""

    answer: str | None
    score: float | None
    """None where its chunks could not be judged."""
    spent: Spent


@dataclass(frozen=True)
class Solved:
    """One answer of a method to a problem."""

    answer: str | None
    spent: Spent
    votes: int = 1
    """Answers that it was chosen from by vote."""
    forced: int = 0
    """Chunks taken although the judge refused every sample (chunk-reset)."""


@dataclass(frozen=True)
class MethodRun:
    """A method of one size, with one judge, on every problem."""

    method: str
    judge: str
    size: int
    """Samples, searches or beams of a problem."""
    found: Sequence[Sequence[Solved]]
    """Of each problem, its independent answers."""
    seconds: float | None
    """Wall clock of all problems; None for a size whose samples were part of a larger one."""
    problems_at_once: int
    engines: int


def majority_of(group: Sequence[Contender], key: Key) -> Solved:
    """Majority vote, whatever the judge says."""
    answers = [contender.answer for contender in group]
    return _elected(group, majority_vote(answers, key), group)


def weighted_of(group: Sequence[Contender], key: Key) -> Solved:
    """Vote weighted by score. What has no score has no vote, unless nothing has: a majority then.

    Raises:
        ValueError: a score that is negative or not finite.
    """
    scored = [(c.answer, c.score) for c in group if c.score is not None]
    if not scored:
        return majority_of(group, key)
    winner = weighted_vote([answer for answer, _ in scored], [score for _, score in scored], key)
    return _elected(group, winner, [c for c in group if c.score is not None])


def best_of(group: Sequence[Contender], key: Key) -> Solved:
    """The contender with the best score, of those with an answer where there are any.

    Raises:
        ValueError: a score that is nan.
    """
    answered = [contender for contender in group if contender.answer is not None] or [*group]
    scored = [(c, c.score) for c in answered if c.score is not None]
    picked = best_of_n([c for c, _ in scored], [s for _, s in scored]) if scored else answered[0]
    total = together(contender.spent for contender in group)
    accepted = picked.spent.accepted_tokens
    spent = Spent(accepted, total.policy_tokens - accepted, total.judge_tokens)
    return Solved(picked.answer, spent)


def _elected(group: Sequence[Contender], answer: str | None, voters: Sequence[Contender]) -> Solved:
    votes = sum(contender.answer is not None for contender in voters)
    return Solved(answer, together(contender.spent for contender in group), votes)


def disjoint(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Groups of so many, in order; what is left over is left out."""
    return [items[i : i + size] for i in range(0, len(items) - size + 1, size)]


def sizes_up_to(count: int) -> list[int]:
    """2, 4, 8, ... and ``count`` itself; none below 2, where nothing is chosen."""
    return sorted({2**i for i in range(1, count.bit_length())} | {count} - {1})


def samples_for_budget(total_tokens_per_problem: float, tokens_per_sample: float) -> int:
    """How many samples a baseline gets for the tokens that a search spent, at least 1.

    Rounded up, so that a comparison at equal cost never starves the baseline.

    Raises:
        ValueError: a token count that is not finite, a negative total, or a sample not above 0.
    """
    if not (math.isfinite(total_tokens_per_problem) and total_tokens_per_problem >= 0):
        raise ValueError(
            f"total_tokens_per_problem must be 0 or more, got {total_tokens_per_problem}"
        )
    if not (math.isfinite(tokens_per_sample) and tokens_per_sample > 0):
        raise ValueError(f"tokens_per_sample must be above 0, got {tokens_per_sample}")
    return max(1, math.ceil(total_tokens_per_problem / tokens_per_sample - 1e-9))


def mean_tokens(found: Sequence[Sequence[Solved]]) -> float:
    """Total tokens of a problem; problems count alike, however many answers they have."""
    return _mean(found, lambda solved: solved.spent.total_tokens)


def _mean(found: Sequence[Sequence[Solved]], what: Callable[[Solved], float]) -> float:
    return mean_and_error([sum(map(what, answers)) / len(answers) for answers in found])[0]


@dataclass(frozen=True)
class Baseline:
    """Plain samples of every problem, and votes among them."""

    solutions: Sequence[Solutions]
    checker: AnswerChecker
    named: Sequence[Mapping[str, str]]
    """`solution_voices` of the solutions."""

    @property
    def single(self) -> Accuracy:
        return accuracy(self.solutions)

    @property
    def samples(self) -> int:
        """Of a problem."""
        return len(self.solutions[0].samples)

    def majority(self, votes: int) -> list[float]:
        """Share of right majorities of each problem."""
        return majority_shares(self.solutions, votes, self.checker, self.named)

    def vote_row(self, shares: Sequence[float], votes: int) -> dict[str, float]:
        mean, error = mean_and_error(known(shares))
        return {
            "votes": votes,
            "accuracy": mean,
            "accuracy_se": error,
            "total_tokens": votes * self.single.tokens,
        }

    def shares(self, found: Sequence[Sequence[Solved]]) -> list[float]:
        """Share of right answers of each problem; nan where none could be checked."""
        return [
            share_true(
                self.checker.check_many(
                    [solved.answer for solved in answers],
                    solution.problem.answer,
                    solution.problem.question,
                )
            )
            for answers, solution in zip(found, self.solutions, strict=True)
        ]

    def affordable_votes(self, total_tokens: float) -> int:
        """Votes of a majority that costs as much, or barely more."""
        return min(samples_for_budget(total_tokens, self.single.tokens), self.samples)


def method_row(run: MethodRun, baseline: Baseline, shares: Sequence[float]) -> dict[str, Any]:
    """What a run of a method measured, beside plain sampling and the majority at its cost.

    Args:
        run: the method.
        baseline: plain samples of the same problems, in the same order.
        shares: `baseline.shares(run.found)`.

    Token counts are means of a problem. Differences are of the same problems: their standard
    error leaves out how hard these are.
    """
    mean, error = mean_and_error(known(shares))
    total = mean_tokens(run.found)
    votes = baseline.affordable_votes(total)
    elected = baseline.majority(votes)
    return {
        "method": run.method,
        "judge": run.judge,
        "size": run.size,
        "accuracy": mean,
        "accuracy_se": error,
        "accepted_tokens": _mean(run.found, lambda solved: solved.spent.accepted_tokens),
        "rejected_tokens": _mean(run.found, lambda solved: solved.spent.rejected_tokens),
        "policy_tokens": _mean(run.found, lambda solved: solved.spent.policy_tokens),
        "judge_tokens": _mean(run.found, lambda solved: solved.spent.judge_tokens),
        "total_tokens": total,
        "forced": _mean(run.found, lambda solved: solved.forced),
        "votes": _mean(run.found, lambda solved: solved.votes),
        "seconds": run.seconds,
        "problems_at_once": run.problems_at_once,
        "engines": run.engines,
        "majority_at_cost": baseline.vote_row(elected, votes),
        "over_plain": difference(shares, [s.share_right for s in baseline.solutions]),
        "over_majority": difference(shares, elected),
    }


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean gain on the same problems; its error leaves out how hard they are."""
    mean, error = mean_and_error(known([a - b for a, b in zip(ours, theirs, strict=True)]))
    return {"mean": mean, "se": error}


def told_apart(mean: float, error: float) -> int:
    """1 or -1 where the 95% interval of a difference lies on that side of 0, else 0.

    An error of 0 comes from problems that all differ alike, and bounds nothing; nan neither.
    """
    if not error > 0 or not abs(mean) > Z95 * error:
        return 0
    return 1 if mean > 0 else -1


def method_title(method: str, size: int) -> str:
    """`best of 8`; a method of another version has the name that it was written with."""
    return TITLES[method].format(size) if method in TITLES else f"{method} of {size}"


def in_words(gains: Sequence[tuple[str, float, float]]) -> list[str]:
    """What the intervals say of methods held against the majority vote at their own cost.

    Args:
        gains: title, mean gain over that vote on the same problems, and its standard error.
    """
    sides: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for title, mean, error in gains:
        sides[told_apart(mean, error)].append(f"{title} ({mean:+.3f})")
    words = {
        -1: "Majority vote is better at the same total tokens than: ",
        1: "Better than majority vote at the same total tokens: ",
        0: "Not to be told from majority vote at the same total tokens: ",
    }
    return [f"{words[side]}{'; '.join(titles)}." for side, titles in sides.items() if titles]
