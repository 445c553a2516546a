"""Two annotations of the same chunks, by hand and by drawing."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question, trajectory_labels
from stepwiser.data.records import Q0, ChunkValue, Trajectory
from stepwiser.evaluation.label_agreement import label_agreement

ABS_Q = Question(LabelRule.ABS_Q)


def _trajectory(name: str, right: int, trials: int, chunks: int) -> Trajectory:
    return Trajectory(
        trajectory_id=name,
        problem_id=f"problem of {name}",
        question="?",
        answer="1",
        response_ids=list(range(chunks)),
        chunks=["step"] * chunks,
        chunk_ends=list(range(1, chunks + 1)),
        final_answer="1",
        correct=True,
        problem_successes=right,
        problem_trials=trials,
    )


def _value(name: str, index: int, right: int, trials: int, planned: int) -> ChunkValue:
    return ChunkValue(
        trajectory_id=name,
        problem_id=f"problem of {name}",
        chunk_index=index,
        successes=right,
        trials=trials,
        truncated=0,
        unverifiable=0,
        generated_tokens=0,
        is_outcome=planned == 1,
        planned=planned,
        error_bound=0.0,
        first_successes=right,
        first_trials=trials,
        q_low=0.0,
        q_high=1.0,
    )


def _rows(name: str, counts: list[int], planned: int, first: int = 0) -> list[ChunkValue]:
    return [_value(name, i, n, planned, planned) for i, n in enumerate(counts, first)]


def test_agreement_by_hand() -> None:
    trajectories = [_trajectory("a", 2, 4, 2), _trajectory("b", 2, 4, 2), _trajectory("c", 2, 4, 1)]
    values = {"a": _rows("a", [3, 0], 4), "b": _rows("b", [1, 2], 4), "c": _rows("c", [1], 4)}
    repeats = {
        "a": _rows("a", [2, 4, 1], 4, Q0),  # Positive, Positive: the second one differs
        "b": _rows("b", [1, 0, 3], 4, Q0),  # Negative, Positive: the first one does
    }
    found = label_agreement(ABS_Q, trajectories, values, repeats)
    assert [row.rollouts for row in found] == [1, 2, 4]
    whole = found[-1]
    assert (whole.chunks, whole.agreement, whole.one_sided) == (4, 0.5, 0)
    # Both call three of four Positive: by chance 9/16 + 1/16 agree.
    assert whole.kappa == pytest.approx((0.5 - 0.625) / 0.375)
    # One rollout of each: 3/4·1 + …, chunk by chunk.
    by_chunk = [0.75 * 1, 1 - 0.25, 1 - 0.25, 0.5 * 0.75 + 0.5 * 0.25]
    assert found[0].agreement == pytest.approx(sum(by_chunk) / 4)


def test_labels_that_end_earlier_in_one_of_them_are_counted() -> None:
    question = replace(ABS_Q, minimum_previous_value=0.5)
    values = {"a": _rows("a", [3, 3, 3], 4)}
    repeats = {"a": _rows("a", [2, 1, 3, 3], 4, Q0)}
    (*_, whole) = label_agreement(question, [_trajectory("a", 2, 4, 3)], values, repeats)
    assert (whole.chunks, whole.agreement, whole.one_sided) == (1, 1.0, 2)
    assert whole.kappa is None and whole.low is None


def test_what_stopped_early_is_compared_as_it_stands() -> None:
    values = {"a": [_value("a", 0, 1, 2, 4)]}
    repeats = {"a": [_value("a", Q0, 2, 4, 4), _value("a", 0, 1, 4, 4)]}
    (row,) = label_agreement(ABS_Q, [_trajectory("a", 2, 4, 1)], values, repeats)
    assert (row.rollouts, row.agreement) == (4, 1.0)
    open_label = {"a": [_value("a", 0, 0, 2, 4)]}
    assert label_agreement(ABS_Q, [_trajectory("a", 2, 4, 1)], open_label, repeats) == []
    assert label_agreement(ABS_Q, [_trajectory("a", 2, 4, 1)], values, {}) == []


@pytest.mark.parametrize("rule", LabelRule)
def test_fewer_rollouts_agree_as_parts_drawn_from_them_do(rule: LabelRule) -> None:
    rng = Random(3)
    question, planned, part = Question(rule), 8, 2
    names = [str(i) for i in range(12)]
    trajectories = [_trajectory(name, 4, 8, 3) for name in names]
    values = {n: _rows(n, [rng.randint(0, 8) for _ in range(3)], planned) for n in names}
    repeats = {n: _rows(n, [4, *(rng.randint(0, 8) for _ in range(3))], planned, Q0) for n in names}
    expected = {
        row.rollouts: row for row in label_agreement(question, trajectories, values, repeats)
    }

    def thin(row: ChunkValue) -> ChunkValue:
        outcomes = [1] * row.successes + [0] * (row.trials - row.successes)
        return _value(
            row.trajectory_id, row.chunk_index, sum(rng.sample(outcomes, part)), part, part
        )

    same = total = 0
    for _ in range(400):
        for trajectory in trajectories:
            name = trajectory.trajectory_id
            sides = []
            for rows in (values[name], repeats[name][1:]):
                # A chunk's label hangs on both its prefixes, drawn anew for each chunk.
                side = []
                for i in range(3):
                    drawn = [thin(row) for row in rows[: i + 1]]
                    start = _trajectory(name, *_drawn_start(rng, 4, 8, part), 3)
                    side.append(trajectory_labels(question, start, drawn)[i])
                sides.append(side)
            same += sum(a == b for a, b in zip(*sides, strict=True))
            total += 3
    assert expected[part].agreement == pytest.approx(same / total, abs=0.015)
    assert expected[part].agreement != expected[planned].agreement


def _drawn_start(rng: Random, right: int, trials: int, part: int) -> tuple[int, int]:
    return sum(rng.sample([1] * right + [0] * (trials - right), part)), part
