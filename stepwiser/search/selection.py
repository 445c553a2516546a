"""Which of a problem's own solutions to fine-tune on (paper: training data selection)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Candidate:
    """One solution of a problem."""

    correct: bool | None
    """Whether the final answer is right; ``None`` where that is not known."""
    chunk_scores: tuple[float, ...]
    """The judge's score of each chunk, 0..1, higher is better."""

    @property
    def mean_score(self) -> float | None:
        """Mean over the chunks; ``None`` if nothing was scored."""
        return math.fsum(self.chunk_scores) / len(self.chunk_scores) if self.chunk_scores else None


@dataclass(frozen=True)
class Picks:
    """Index of the picked candidate under each policy; ``None`` where none qualifies."""

    random: int | None
    """Any candidate."""
    judge: int | None
    """The highest mean score, without looking at the answer key."""
    random_right: int | None
    """Any candidate with a right answer (selection by outcome)."""
    judge_right: int | None
    """The highest mean score among right ones (the paper's selection)."""


def pick_candidates(candidates: Sequence[Candidate], *, seed: int, problem_id: str) -> Picks:
    """Pick one candidate of a problem under each of the four policies.

    The same seed, problem and candidates give the same picks, in whatever order problems come; each
    pick has its own random generator, so none depends on another. Ties are broken at random. A
    candidate that is not known to be right is not right; one without scores is never the judge's.

    Raises:
        ValueError: a score that is not finite.
    """
    means = [candidate.mean_score for candidate in candidates]
    for i, mean in enumerate(means):
        if mean is not None and not math.isfinite(mean):
            raise ValueError(
                f"candidate {i} of problem {problem_id!r} has a score that is not finite: "
                f"{candidates[i].chunk_scores}"
            )
    everyone = list(range(len(candidates)))
    right = [i for i in everyone if candidates[i].correct is True]

    def pick(name: str, among: Sequence[int]) -> int | None:
        return Random(f"{seed}/{problem_id}/{name}").choice(among) if among else None

    def best(among: Sequence[int]) -> list[int]:
        scored = [(mean, i) for i in among if (mean := means[i]) is not None]
        top = max((mean for mean, _ in scored), default=None)
        return [i for mean, i in scored if mean == top]

    return Picks(
        random=pick("random", everyone),
        judge=pick("judge", best(everyone)),
        random_right=pick("random_right", right),
        judge_right=pick("judge_right", best(right)),
    )
