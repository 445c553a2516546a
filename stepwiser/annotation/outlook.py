"""What is left to generate, seen while problems are under way.

Many problems are under way together, and those with nothing to value are done first: what the
finished ones took says little of the others. So labelers count what all of theirs have come to, and
what is left of a problem follows from the prefixes that it is known to have.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from stepwiser.annotation.stopping import StoppingPlan, StoppingRule

GUESS = {StoppingRule.FIXED: 1.0, StoppingRule.EXACT: 0.6, StoppingRule.SEQUENTIAL: 0.6}
"""Share of the planned rollouts that a prefix takes, before any problem shows it."""

LEAST_LEFT = 0.1
"""Share of its rollouts that what is under way still has before it, at the least: the last problems
are those that take more than others did."""


@dataclass(frozen=True)
class WorkSeen:
    """What the problems that were begun have come to, those under way included."""

    problems: int = 0
    """Whose responses are there."""
    responses: int = 0
    response_tokens: int = 0
    prefixes: int = 0
    """That their trajectories have; one that is valued twice counts twice."""
    rollouts: int = 0
    rollout_tokens: int = 0
    settled_prefixes: int = 0
    """Of problems that are done with."""
    settled_rollouts: int = 0

    def __add__(self, other: WorkSeen) -> WorkSeen:
        return WorkSeen(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def tokens_left(seen: WorkSeen, problems: int, plan: StoppingPlan) -> float | None:
    """Tokens that the rest of so many problems is expected to take; None before there is any
    response."""
    if not seen.responses:
        return None
    under_way = seen.prefixes - seen.settled_prefixes
    made = seen.rollouts - seen.settled_rollouts
    # Problems that take less are done with first: those under way are guessed, for a half, until
    # they have had more than that.
    guessed = under_way / 2 if seen.prefixes else 1.0
    guess = GUESS[plan.rule] * plan.planned * guessed
    per_prefix = (seen.settled_rollouts + guess) / (seen.settled_prefixes + guessed)
    if under_way:
        per_prefix = max(per_prefix, made / under_way)
    expected = under_way * per_prefix
    # A rollout begins anywhere in a response.
    length = seen.response_tokens / seen.responses / 2
    if seen.rollouts:
        length = seen.rollout_tokens / seen.rollouts
    waiting = max(0, problems - seen.problems)
    tokens = seen.response_tokens / seen.problems
    rolled = seen.prefixes / seen.problems * per_prefix * length
    return waiting * (tokens + rolled) + max(expected - made, LEAST_LEFT * expected) * length
