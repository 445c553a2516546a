"""The four ways to pick a solution for fine-tuning."""

from __future__ import annotations

from collections import Counter

import pytest

from stepwiser.search.selection import Candidate, pick_candidates

CANDIDATES = [
    Candidate(False, (1.0, 1.0)),
    Candidate(True, (0.5, 0.7)),
    Candidate(True, (0.9,)),
    Candidate(None, (1.0, 0.8)),
    Candidate(True, ()),
]


def test_judge_picks_by_mean_score() -> None:
    picks = pick_candidates(CANDIDATES, seed=0, problem_id="x")
    assert picks.judge == 0  # fooled, as it does not see the answer key
    assert picks.judge_right == 2  # unknown is not right, and without scores there is no mean
    assert CANDIDATES[1].mean_score == pytest.approx(0.6)


def test_random_picks_cover_what_they_may_and_no_more() -> None:
    picks = [pick_candidates(CANDIDATES, seed=s, problem_id="x") for s in range(1000)]
    anyone = Counter(p.random for p in picks)
    right = Counter(p.random_right for p in picks)
    assert set(anyone) == {0, 1, 2, 3, 4} and min(anyone.values()) > 140  # 200 ± 13
    assert set(right) == {1, 2, 4} and min(right.values()) > 270  # 333 ± 15


def test_ties_are_broken_at_random_but_reproducibly() -> None:
    tied = [Candidate(True, (0.5, 0.5)), Candidate(True, (0.25, 0.75)), Candidate(True, (0.4,))]
    seen = Counter(pick_candidates(tied, seed=s, problem_id="x").judge_right for s in range(200))
    assert set(seen) == {0, 1} and min(seen.values()) > 60
    first = pick_candidates(tied, seed=7, problem_id="x")
    assert first == pick_candidates(tied, seed=7, problem_id="x")
    other = [pick_candidates(tied, seed=7, problem_id=str(i)) for i in range(20)]
    assert len(set(other)) > 1  # problems do not share their draws


def test_no_candidate_qualifies() -> None:
    picks = pick_candidates([Candidate(False, ()), Candidate(None, ())], seed=0, problem_id="x")
    assert picks.random is not None
    assert (picks.judge, picks.random_right, picks.judge_right) == (None, None, None)
    empty = pick_candidates([], seed=0, problem_id="x")
    assert (empty.random, empty.judge) == (None, None)


def test_score_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="candidate 1 of problem 'x'"):
        pick_candidates([CANDIDATES[0], Candidate(True, (float("nan"),))], seed=0, problem_id="x")
