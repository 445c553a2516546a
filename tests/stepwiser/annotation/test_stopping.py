"""Stopping rules: hand-computed requests, identity with fixed, odds, and what they save."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest

from stepwiser.annotation.label_rules import LabelRule, label_chunks
from stepwiser.annotation.stopping import (
    Question,
    StoppingPlan,
    StoppingRule,
    annotated,
    decide_below,
    decide_label,
    decide_labels,
    first_wave,
    positive_probability,
    requests,
    stopping_plan,
)
from stepwiser.annotation.values import RolloutCounts
from stepwiser.config.annotation import AnnotateConfig, LabelConfig, RuleConfig
from tests.stepwiser.annotation.stopping_simulation import Simulated, draw, follow, simulate

ABS_Q = Question(LabelRule.ABS_Q)
REL_EFFECTIVE = Question(LabelRule.REL_EFFECTIVE, alpha=0.8)
REL_RATIO = Question(LabelRule.REL_RATIO, gamma=0.7)

HALF = RolloutCounts(8, 16, 16)
RIGHT, WRONG = RolloutCounts(1, 1, 1), RolloutCounts(0, 1, 1)
NONE = RolloutCounts(0, 0, 16)


def exact(*questions: Question, stop_below: float = 0.0, wave: int = 4) -> StoppingPlan:
    return StoppingPlan(StoppingRule.EXACT, 16, wave, 0.0, stop_below, questions)


def made(successes: int, trials: int) -> RolloutCounts:
    return RolloutCounts(successes, trials, 16)


@pytest.mark.parametrize(
    ("question", "counts", "more"),
    [
        (ABS_Q, NONE, 2),
        (ABS_Q, made(1, 4), None),
        (ABS_Q, made(0, 4), 4),
        (ABS_Q, made(0, 14), 2),
        (ABS_Q, made(0, 16), None),
        # After Q_0 = 8/16, Rel-Effective is Positive from 4 of 16 on: .25 + .8 (.684 − .9375) > 0.
        (REL_EFFECTIVE, made(4, 4), None),
        (REL_EFFECTIVE, NONE, 4),
        (REL_EFFECTIVE, made(3, 4), 1),  # one success more, and 70 % of completions succeed
        (REL_EFFECTIVE, made(2, 4), 4),  # two more, of which every second succeeds
        (REL_EFFECTIVE, made(0, 12), 1),  # the 13th failure settles it
        (REL_EFFECTIVE, made(0, 13), None),
        # 7 of 10 after 8 of 16: Rel-Ratio needs more than .35, 6 of 16.
        (REL_RATIO, made(6, 10), None),
        (REL_RATIO, made(5, 10), 2),  # one success more, and every second succeeds
        (REL_RATIO, made(1, 12), None),
    ],
)
def test_what_one_chunk_asks_for_next(
    question: Question, counts: RolloutCounts, more: int | None
) -> None:
    """The last chunk's label is settled by its outcome alone, so only the first chunk's counts."""
    path = [HALF, counts, RIGHT]
    assert requests(exact(question), path) == ({1: more} if more else {})


def test_a_fixed_plan_asks_for_all_of_them_at_once() -> None:
    plan = StoppingPlan(StoppingRule.FIXED, 16, 16)
    assert requests(plan, [HALF, NONE, NONE, RIGHT]) == {1: 16, 2: 16}
    assert requests(plan, [HALF, made(0, 16), NONE, RIGHT]) == {2: 16}
    assert requests(plan, [HALF, NONE, NONE, RIGHT], in_flight={2}) == {1: 16}


def test_chunks_behind_one_that_may_be_the_last_wait() -> None:
    fixed = StoppingPlan(StoppingRule.FIXED, 16, 16, stop_below=0.35)
    assert requests(fixed, [HALF, NONE, NONE, RIGHT]) == {1: 16}
    assert requests(fixed, [HALF, made(6, 16), NONE, RIGHT]) == {2: 16}
    assert requests(fixed, [HALF, made(5, 16), NONE, RIGHT]) == {}
    assert annotated(fixed, [HALF, made(5, 16), NONE, RIGHT]) == 1
    early = exact(ABS_Q, stop_below=0.35)
    assert requests(early, [HALF, NONE, NONE, RIGHT]) == {1: 2}
    # 6 of 16 are not below .35: two successes more at a rate of .9 take 2 completions or 3.
    assert requests(early, [HALF, made(4, 4), NONE, RIGHT]) == {1: 2}
    assert requests(early, [HALF, made(6, 7), NONE, RIGHT]) == {2: 2}
    assert requests(early, [HALF, made(1, 12), NONE, RIGHT]) == {}, "at most 5 of 16"
    assert annotated(early, [HALF, made(1, 12), NONE, RIGHT]) == 1


def test_decisions_wait_for_what_is_in_flight() -> None:
    path = [HALF, made(0, 4), made(0, 4), RIGHT]
    assert requests(exact(ABS_Q), path) == {1: 4, 2: 4}
    assert requests(exact(ABS_Q), path, in_flight={1}) == {2: 4}
    assert requests(exact(REL_RATIO), path, in_flight={1}) == {}, "both labels hang on chunk 1"


def test_of_two_prefixes_the_one_that_can_settle_the_label_is_pursued() -> None:
    # Chunk 2 after a value of 14/16: 4 of 16 can be Negative or Positive, the rest of its own
    # completions will tell; more of chunk 1, whose label is settled, would not.
    path = [HALF, made(12, 14), made(1, 8), WRONG]
    assert set(requests(exact(REL_EFFECTIVE), path)) == {2}


def test_labels_end_behind_a_low_value_and_nothing_is_asked_there() -> None:
    question = Question(LabelRule.ABS_Q, minimum_previous_value=0.35)
    path = [HALF, made(1, 12), made(0, 4), RIGHT]
    assert decide_labels(question, path) == [True]
    assert requests(exact(question), path) == {}
    assert decide_labels(question, [HALF, made(1, 8), made(0, 4), RIGHT]) == [True, None]
    assert requests(exact(question), [HALF, made(1, 8), made(0, 4), RIGHT]) == {1: 4}
    assert decide_labels(question, [made(5, 16), made(16, 16), RIGHT]) == []
    # A value of its own every annotated chunk still gets.
    assert requests(exact(question), [made(5, 16), NONE, NONE, RIGHT]) == {1: 2, 2: 2}


def test_below_a_threshold_as_all_completions_will_say() -> None:
    assert decide_below(made(6, 6), 0.35) is False
    assert decide_below(made(5, 5), 0.35) is None
    assert decide_below(made(0, 10), 0.35) is None, "6 of 16 are still possible"
    assert decide_below(made(0, 11), 0.35) is True
    assert decide_below(made(0, 8), 0.35, error_bound=0.05) is True
    assert decide_below(NONE, 0.0) is False


def _finish(plan: StoppingPlan, trajectory: Simulated, rng: Random) -> list[int]:
    """As the annotator: waves are in flight together and come back in any order."""
    made = [0] * len(trajectory.values)
    in_flight: dict[int, int] = {}
    while True:
        path = trajectory.path(made, plan.planned)
        in_flight |= requests(plan, path, in_flight)
        if not in_flight:
            return made
        position = rng.choice(sorted(in_flight))
        made[position - 1] += in_flight.pop(position)


def _random_trajectory(rng: Random, planned: int) -> Simulated:
    values = [rng.choice([0.0, 0.05, rng.random(), 0.9, 1.0]) for _ in range(rng.randint(0, 5))]
    return Simulated(
        RolloutCounts(rng.randint(0, 16), 16, 16),
        values,
        [[rng.random() < q for _ in range(planned)] for q in values],
        rng.random() < 0.5,
    )


def _random_question(rng: Random) -> Question:
    return Question(
        rng.choice(list(LabelRule)),
        alpha=rng.choice([0.2, 0.4, 0.6, 0.8, 1.0]),
        gamma=rng.choice([0.6, 0.7, 0.8, 1.0, 1.2]),
        best_of=rng.choice([1, 4]),
        minimum_previous_value=rng.choice([0.0, 0.0, 0.2, 0.35, 0.5]),
    )


def _labels_of_all(question: Question, path: list[RolloutCounts]) -> list[bool]:
    """By `label_chunks` on plain means, as a run that stops nothing gives them."""
    means = [counts.successes / counts.planned for counts in path]
    kept = itertools.takewhile(lambda q: q >= question.minimum_previous_value, means[:-1])
    labels = label_chunks(
        question.rule,
        means[1:],
        means[0],
        alpha=question.alpha,
        gamma=question.gamma,
        best_of=question.best_of,
    )
    return labels[: sum(1 for _ in kept)]


@pytest.mark.parametrize("seed", range(8))
def test_exact_gives_the_labels_of_fixed_one_by_one(seed: int) -> None:
    """Whatever the rules, thresholds, waves and order of arrival."""
    rng = Random(seed)
    saved = 0
    for _ in range(250):
        planned = rng.choice([1, 5, 8, 12, 16])
        plan = StoppingPlan(
            StoppingRule.EXACT,
            planned,
            rng.randint(1, planned),
            stop_below=rng.choice([0.0, 0.0, 0.2, 0.35]),
            questions=tuple(_random_question(rng) for _ in range(rng.randint(1, 3))),
        )
        trajectory = _random_trajectory(rng, planned)
        made = _finish(plan, trajectory, rng)
        path, whole = trajectory.path(made, planned), trajectory.path(planned, planned)
        # Followed until a value falls below the threshold, which the last one cannot.
        low = [i for i, t in enumerate(whole[1:-1], 1) if t.successes / planned < plan.stop_below]
        reach = min(low, default=len(whole) - 1)
        assert annotated(plan, path) == reach
        for question in plan.questions:
            assert decide_labels(question, path[: reach + 1]) == _labels_of_all(
                question, whole[: reach + 1]
            )
        rolled = made[: min(reach, len(made))]
        assert all(min(first_wave(plan), planned) <= n <= planned for n in rolled)
        assert made[reach:] == [0] * len(made[reach:]), "nothing behind the end"
        saved += planned * len(rolled) - sum(rolled)
    assert saved > 500


@pytest.mark.parametrize("question", [ABS_Q, REL_EFFECTIVE, REL_RATIO], ids=str)
def test_odds_of_a_label_against_enumeration(question: Question) -> None:
    rng = Random(1)
    for _ in range(60):
        all_counts = []
        for planned in (rng.randint(3, 9), rng.randint(3, 9)):
            trials = rng.randint(0, planned)
            all_counts.append(RolloutCounts(rng.randint(0, trials), trials, planned))
        before, current = all_counts
        total = 0.0
        for (a, p), (b, q) in itertools.product(
            enumerate(before.predictive()), enumerate(current.predictive())
        ):
            old = (before.successes + a) / before.planned
            new = (current.successes + b) / current.planned
            total += p * q * label_chunks(question.rule, [new], old)[0]
        assert positive_probability(question, before, current) == pytest.approx(total)
        certain = decide_label(question, before, current)
        if certain is not None:
            assert total == pytest.approx(float(certain))
            assert decide_label(question, before, current, 0.05) is certain


@pytest.mark.parametrize("question", [ABS_Q, REL_EFFECTIVE, REL_RATIO], ids=str)
@pytest.mark.parametrize("planned", [16, 48])
def test_the_error_bound_holds_where_values_follow_the_prior(
    question: Question, planned: int
) -> None:
    rng = Random(planned)
    bound = 0.1
    plan = StoppingPlan(StoppingRule.SEQUENTIAL, planned, 4, bound, questions=(question,))
    wrong = labels = 0
    for _ in range(1500):
        values = [rng.betavariate(0.5, 0.5) for _ in range(2)]
        completions = [[rng.random() < q for _ in range(planned)] for q in values]
        trajectory = Simulated(HALF, values, completions, True)
        path = trajectory.path(follow(plan, trajectory)[0], planned)
        answers = decide_labels(question, path, bound)
        assert None not in answers
        truth = decide_labels(question, trajectory.path(planned, planned))
        # Of the labels that rollouts decide: the last follows from the outcome.
        wrong += sum(a != b for a, b in zip(answers[:2], truth[:2], strict=True))
        labels += 2
    assert 0 < wrong <= bound * labels


@pytest.fixture(scope="module", params=[False, True], ids=["ending low", "followed to the end"])
def trajectories(request: pytest.FixtureRequest) -> list[Simulated]:
    return draw(0, request.param)


def test_completions_that_exact_needs(trajectories: list[Simulated]) -> None:
    """With a third more lost prefixes where trajectories are followed, which settle late."""
    followed = sum(len(t.values) for t in trajectories) > 1500
    for question, share, share_followed in (
        (ABS_Q, 0.45, 0.53),
        (Question(LabelRule.REL_EFFECTIVE, alpha=0.4), 0.50, 0.55),
        (REL_EFFECTIVE, 0.55, 0.65),
        (REL_RATIO, 0.85, 0.88),
    ):
        figures = simulate(exact(question), trajectories)
        assert figures.agreement == 1.0
        assert figures.share <= (share_followed if followed else share), str(question)
        assert abs(figures.first_bias) < 0.01 < figures.coverage - 0.93


def test_completions_that_sequential_needs(trajectories: list[Simulated]) -> None:
    for question in (Question(LabelRule.REL_EFFECTIVE, alpha=0.4), REL_EFFECTIVE):
        plan = StoppingPlan(StoppingRule.SEQUENTIAL, 16, 4, 0.2, questions=(question,))
        figures = simulate(plan, trajectories)
        assert figures.share <= 0.4 and figures.agreement >= 0.97, str(question)
        # With what this saves spent on the undecided prefixes, fewer labels are wrong.
        plan = StoppingPlan(StoppingRule.SEQUENTIAL, 64, 4, 0.1, questions=(question,))
        figures = simulate(plan, trajectories)
        assert figures.share <= 1.0 and figures.error < 0.85 * figures.fixed_error, str(question)
        assert abs(figures.first_bias) < 0.01 < figures.coverage - 0.93


def test_the_plan_of_a_configuration() -> None:
    label = LabelConfig(rule="rel_ratio", gamma=0.8)
    fixed = stopping_plan(AnnotateConfig(rollouts=8, stop_below=0.2), label)
    assert fixed == StoppingPlan(StoppingRule.FIXED, 8, 8, stop_below=0.2)
    early = stopping_plan(AnnotateConfig(stopping="exact"), label)
    assert early.questions == (Question(LabelRule.REL_RATIO, gamma=0.8),), "that of `label`"
    assert (early.planned, early.wave, early.error_bound) == (16, 4, 0.0)
    agreeing = LabelConfig(minimum_previous_value=0.1, agree_with=[{"rule": "abs_q"}])
    plan = stopping_plan(AnnotateConfig(stopping="exact"), agreeing)
    ends = [(str(q.rule), q.minimum_previous_value) for q in plan.questions]
    assert ends == [("rel_effective", 0.1), ("abs_q", 0.1)], "labels end together"
    rules = (RuleConfig(rule="abs_q"), RuleConfig(alpha=0.4))
    config = AnnotateConfig(stopping="sequential", max_rollouts=64, error_bound=0.1, rules=rules)
    sequential = stopping_plan(config, label)
    assert (sequential.planned, sequential.error_bound) == (64, 0.1)
    assert [str(q) for q in sequential.questions] == [
        "abs_q",
        "rel_effective(alpha=0.4, best_of=4)",
    ]


def test_the_prior_alone_settles_nothing() -> None:
    """Odds may be long before the first rollout, but every prefix gets a wave."""
    plan = StoppingPlan(StoppingRule.SEQUENTIAL, 1024, 4, 0.05, questions=(ABS_Q,))
    empty = RolloutCounts(0, 0, 1024)
    assert decide_label(ABS_Q, HALF, empty, 0.05) is True
    assert requests(plan, [HALF, empty, RIGHT]) == {1: 4}
    assert math.fsum(empty.predictive()) == pytest.approx(1.0)
