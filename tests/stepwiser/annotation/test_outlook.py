"""What is left to generate: by hand, and in simulated annotations whose end is known."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from stepwiser.annotation.outlook import LEAST_LEFT, WorkSeen, tokens_left
from stepwiser.annotation.stopping import StoppingPlan, StoppingRule

FIXED = StoppingPlan(StoppingRule.FIXED, planned=8, wave=8)
SEQUENTIAL = StoppingPlan(StoppingRule.SEQUENTIAL, planned=8, wave=4, error_bound=0.1)


def test_nothing_is_known_before_the_first_responses() -> None:
    assert tokens_left(WorkSeen(), 10, FIXED) is None


def test_by_hand() -> None:
    # Two problems of ten: eight responses of 100 tokens, four prefixes, of which none has rollouts.
    seen = WorkSeen(problems=2, responses=8, response_tokens=800, prefixes=4)
    rolled = 4 * 8 * 50  # a rollout takes half a response, before one is seen
    assert tokens_left(seen, 10, FIXED) == pytest.approx(rolled + 8 * (400 + rolled / 2))
    # One of the problems is done: its three prefixes took 16 rollouts, of 20 tokens. Half of
    # the other prefix is guessed to take 4.8.
    done = WorkSeen(2, 8, 800, 4, 17, 340, 3, 16)
    mean = (16 + 2.4) / 3.5
    left = (mean - 1) * 20 + 8 * (400 + 2 * mean * 20)
    assert tokens_left(done, 10, SEQUENTIAL) == pytest.approx(left)
    # What has had more than others took is not done before it is done.
    late = WorkSeen(10, 40, 4000, 4, 18 + 7, 500, 3, 18)
    assert tokens_left(late, 10, SEQUENTIAL) == pytest.approx(LEAST_LEFT * 7 * 20)
    assert tokens_left(WorkSeen(10, 40, 4000, 4, 24, 480, 4, 24), 10, SEQUENTIAL) == 0.0


def test_seen_by_several_labelers() -> None:
    assert WorkSeen(1, 2, 3, 4, 5, 6, 7, 8) + WorkSeen(problems=2) == WorkSeen(
        3, 2, 3, 4, 5, 6, 7, 8
    )


@pytest.mark.parametrize("plan", [FIXED, SEQUENTIAL], ids=["fixed", "sequential"])
@pytest.mark.parametrize("at_once", [8, 200], ids=["one after the other", "all together"])
def test_from_the_first_tenth_on_it_is_right_within_a_factor_of_two(
    plan: StoppingPlan, at_once: int
) -> None:
    wrong = total = 0
    for seed in range(20):
        story = simulate(plan, 200, at_once, Random(seed))
        whole = story[-1][0]
        for spent, left in story:
            # The last hundredths take seconds, whose number nobody asks for.
            if 0.1 * whole <= spent <= 0.97 * whole:
                assert left is not None
                total += 1
                wrong += not 0.5 <= left / (whole - spent) <= 2.0
    assert total > 1000 and wrong / total < 0.05, f"{wrong} of {total}"


def simulate(
    plan: StoppingPlan, problems: int, at_once: int, rng: Random
) -> list[tuple[int, float | None]]:
    """Tokens spent, and what `tokens_left` says then, after each piece of the work.

    Half of the problems have nothing to value; the others have 4 to 24 prefixes, some of which take
    all of their planned rollouts where these stop early. Whoever is begun goes on at random.
    """
    seen, spent, story = WorkSeen(), 0, []
    todo = [_problem(plan, rng) for _ in range(problems)]
    begun: list[_Problem] = []
    while todo or begun:
        while todo and len(begun) < at_once:
            begun.append(todo.pop())
        problem = rng.choice(begun)
        if problem.responses:
            spent += sum(problem.responses)
            seen += WorkSeen(1, 8, sum(problem.responses), problem.prefixes)
            problem.responses = []
        else:
            size = problem.waves.pop()
            tokens = sum(rng.randint(20, 120) for _ in range(size))
            spent += tokens
            seen += WorkSeen(rollouts=size, rollout_tokens=tokens)
        if not problem.waves:
            begun.remove(problem)
            seen += WorkSeen(settled_prefixes=problem.prefixes, settled_rollouts=problem.rollouts)
        story.append((spent, tokens_left(seen, problems, plan)))
    return story


@dataclass
class _Problem:
    responses: list[int]
    prefixes: int
    waves: list[int]
    rollouts: int


def _problem(plan: StoppingPlan, rng: Random) -> _Problem:
    prefixes = rng.choice((0, rng.randint(4, 24)))
    waves = []
    for _ in range(prefixes):
        early = (0.0, 0.5, 0.5, 1.0)  # one that nobody asks for, and more or less clear ones
        share = 1.0 if plan.rule is StoppingRule.FIXED else rng.choice(early)
        waves += [plan.wave] * round(share * plan.planned / plan.wave)
    return _Problem([rng.randint(60, 240) for _ in range(8)], prefixes, waves, sum(waves))
