"""Methods side by side: groups, picks, costs of the vote they are held against, words."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwiser.config.models import ScoreReduction
from stepwiser.data.records import Problem
from stepwiser.data.verifiers import ExactChecker
from stepwiser.prompting.generation import Sample
from stepwiser.search.chunk_reset import chunk_reset
from stepwiser.search.comparison import (
    Baseline,
    Contender,
    MethodRun,
    Solved,
    best_of,
    difference,
    disjoint,
    in_words,
    majority_of,
    method_row,
    method_title,
    samples_for_budget,
    sizes_up_to,
    told_apart,
    weighted_of,
)
from stepwiser.search.drafts import Spent
from stepwiser.search.policy import Solutions, solution_voices
from stepwiser.search.voting import solution_score
from tests.stepwiser.search.toy import DiceJudge, ToyJudge, ToyPolicy, is_right


def own(answer: str) -> str:
    return answer


def contender(answer: str | None, score: float | None, tokens: int = 10) -> Contender:
    return Contender(answer, score, Spent(tokens, 0, 3))


def test_groups_and_their_sizes() -> None:
    assert disjoint("abcdefg", 3) == ["abc", "def"]
    assert [sizes_up_to(n) for n in (1, 2, 5, 8)] == [[], [2], [2, 4, 5], [2, 4, 8]]


def test_picks_and_their_costs() -> None:
    group = [contender("3", 0.9, 7), contender("4", 0.5), contender("4", 0.6), contender(None, 1.0)]
    best = best_of(group, own)
    assert best == Solved("3", Spent(7, 30, 12))
    assert weighted_of(group, own) == Solved("4", Spent(37, 0, 12), votes=3)
    assert majority_of(group, own) == Solved("4", Spent(37, 0, 12), votes=3)


def test_what_could_not_be_judged() -> None:
    unjudged = [contender("4", None), contender("4", None)]
    assert weighted_of([contender("3", 0.1), *unjudged], own) == Solved("3", Spent(30, 0, 9), 1)
    assert best_of([*unjudged, contender("3", 0.0)], own).answer == "3"
    # Nothing was: as if there were no judge.
    assert weighted_of([contender("3", None), *unjudged], own).answer == "4"
    assert best_of([contender(None, 1.0), contender("3", None)], own).answer == "3"
    assert best_of([contender(None, None)], own).answer is None
    for pick in (best_of, weighted_of):
        with pytest.raises(ValueError, match="nan"):
            pick([contender("3", math.nan)], own)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(["last", "min", "product"]))
def test_a_judge_that_knows_everything_never_harms_a_pick(
    seed: int, searches: int, reduction: ScoreReduction
) -> None:
    """Of several chunk-reset searches, each with few tries so that some go wrong."""

    async def all_of_them() -> list[Contender]:
        policy, judge = ToyPolicy(seed, share=0.7), ToyJudge()
        found = await asyncio.gather(
            *(chunk_reset("p", policy, judge, 1, max_chunks=5) for _ in range(searches))
        )
        assert sum(r.policy_tokens for r in found) == policy.tokens
        assert sum(r.judge_tokens for r in found) == judge.tokens
        return [
            Contender(
                "right" if is_right(r.chunks) else "wrong", solution_score(r.scores, reduction), r
            )
            for r in found
        ]

    group = asyncio.run(all_of_them())
    answers = [one.answer for one in group]
    for pick in (best_of, weighted_of):
        found = pick(group, own)
        assert found.answer == ("right" if "right" in answers else "wrong")
        assert found.spent.total_tokens == sum(one.spent.total_tokens for one in group)
    assert majority_of(group, own).answer in answers


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_searches_side_by_side_do_not_wait_for_an_order(seed: int, delays: int) -> None:
    async def all_of_them(policy: ToyPolicy, judge: ToyJudge) -> list[tuple[str, ...]]:
        found = await asyncio.gather(
            *(chunk_reset("p", policy, judge, 1, max_chunks=5) for _ in range(4))
        )
        return [result.chunks for result in found]

    slow = asyncio.run(all_of_them(ToyPolicy(seed, delays=delays), DiceJudge(delays + 1)))
    assert slow == asyncio.run(all_of_them(ToyPolicy(seed), DiceJudge()))


def baseline(*answers: str) -> Baseline:
    """Two problems: the first is answered with these, the second always rightly."""
    checker = ExactChecker()

    def solutions(name: str, texts: tuple[str, ...]) -> Solutions:
        samples = [Sample((1,) * 5, rf"\boxed{{{text}}}", finish_reason="stop") for text in texts]
        return Solutions(Problem(name, "?", "1"), samples, [text == "1" for text in texts])

    found = [solutions("a", answers), solutions("b", tuple("1" for _ in answers))]
    return Baseline(found, checker, solution_voices(found, checker))


def test_a_row_by_hand() -> None:
    plain = baseline("1", "2", "2", "1", "1", "3")
    found = [
        [Solved("1", Spent(4, 6, 2), votes=3), Solved("2", Spent(4, 2, 0), votes=1)],
        [Solved("1", Spent(4, 4, 1), votes=2)],
    ]
    run = MethodRun("early_stop", "judge", 4, found, 2.5, 2, 3)
    shares = plain.shares(found)
    assert shares == [0.5, 1.0]
    row = method_row(run, plain, shares)
    assert (row["method"], row["judge"], row["size"]) == ("early_stop", "judge", 4)
    assert (row["seconds"], row["problems_at_once"], row["engines"]) == (2.5, 2, 3)
    assert row["accuracy"] == 0.75 and row["accuracy_se"] == pytest.approx(0.25)
    assert (row["accepted_tokens"], row["rejected_tokens"]) == (4, 4)
    assert (row["policy_tokens"], row["judge_tokens"], row["total_tokens"]) == (8, 1, 9)
    assert row["votes"] == 2
    # 9 tokens are 1.8 samples of 5: two votes. Groups (1 2) (2 1) (1 3): 1, 2, 1.
    assert row["majority_at_cost"]["votes"] == 2
    assert row["majority_at_cost"]["total_tokens"] == 10
    assert row["majority_at_cost"]["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert row["over_plain"]["mean"] == 0
    assert row["over_majority"]["mean"] == pytest.approx((0.5 - 2 / 3) / 2)
    assert row["over_majority"]["se"] == pytest.approx(1 / 12)


def test_differences_leave_out_what_could_not_be_checked() -> None:
    gain = difference([1.0, math.nan, 0.5], [0.5, 1.0, 0.0])
    assert gain == {"mean": 0.5, "se": 0.0}


def test_words_are_those_of_the_intervals() -> None:
    assert [told_apart(*x) for x in ((0.1, 0.04), (-0.1, 0.04), (0.1, 0.06), (0.1, 0.0))] == [
        1, -1, 0, 0,
    ]  # fmt: skip
    assert told_apart(0.1, math.nan) == told_apart(math.nan, 0.1) == 0
    words = in_words([("a", 0.1, 0.01), ("b", -0.1, 0.01), ("c", -0.2, 0.01), ("d", 0.1, 1.0)])
    assert words == [
        "Majority vote is better at the same total tokens than: b (-0.100); c (-0.200).",
        "Better than majority vote at the same total tokens: a (+0.100).",
        "Not to be told from majority vote at the same total tokens: d (+0.100).",
    ]
    assert in_words([]) == []
    assert method_title("best_of_n", 8) == "best of 8"
    assert method_title("chunk_reset", 1) == "chunk-reset"
    assert method_title("of_another_version", 2) == "of_another_version of 2"


@pytest.mark.parametrize(
    ("total", "each", "samples"),
    [(1000, 250, 4), (1001, 250, 5), (100, 250, 1), (0, 250, 1), (3 * 0.1, 0.1, 3)],
)
def test_samples_for_budget(total: float, each: float, samples: int) -> None:
    assert samples_for_budget(total, each) == samples


@pytest.mark.parametrize(("total", "each"), [(-1, 1), (float("inf"), 1), (1, 0), (1, float("nan"))])
def test_samples_for_budget_refuses(total: float, each: float) -> None:
    with pytest.raises(ValueError, match="tokens_per"):
        samples_for_budget(total, each)
