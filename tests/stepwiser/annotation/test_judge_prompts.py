"""Steps that ignore the chunks: what they hold and what they are worth."""

from dataclasses import replace

import pytest

from stepwiser.annotation.judge_prompts import DISPUTED, UNSPLIT, label_trajectory, merge_chunks
from stepwiser.config.annotation import LabelConfig
from stepwiser.data.records import ChunkValue, Trajectory
from tests.stepwiser.annotation.test_annotator import PROMPTS
from tests.stepwiser.run.annotated_run import trajectory, values


def _solution(correct: bool = True) -> Trajectory:
    return replace(
        trajectory("t1"),
        chunks=["a\n", "b\n", "c\n", "d\n", "e\n"],
        chunk_ends=[2, 4, 6, 8, 10],
        correct=correct,
    )


def _merged(row: Trajectory, count: int) -> tuple[Trajectory, list[ChunkValue]]:
    own = [
        replace(value, successes=n, trials=16)
        for n, value in enumerate(values(replace(row, chunks=row.chunks[:count]), [0] * count))
    ]
    return merge_chunks(row, own, 2, "")


def test_a_step_is_worth_what_its_last_chunk_is() -> None:
    steps, own = _merged(_solution(), 5)
    assert steps.chunks == ["a\nb\n", "c\nd\n", "e\n"]
    assert steps.chunk_ends == [4, 8, 10]
    assert [(v.chunk_index, v.successes) for v in own] == [(0, 1), (1, 3), (2, 4)]


def test_values_that_end_within_a_step_stand_for_it() -> None:
    steps, own = _merged(_solution(), 3)
    assert len(steps.chunks) == 3
    assert [(v.chunk_index, v.successes, v.trials) for v in own] == [(0, 1, 16), (1, 2, 16)]


@pytest.mark.parametrize("correct", [True, False])
def test_the_last_step_has_the_outcome(correct: bool) -> None:
    row = replace(_solution(correct), chunks=["a\n", "b\n", "c\n", "d\n"], chunk_ends=[2, 4, 6, 8])
    _, own = _merged(row, 3)
    assert (own[1].mean, own[1].is_outcome, own[1].trials) == (float(correct), True, 1)


def test_chunks_on_which_rules_differ_are_marked() -> None:
    row = replace(_solution(), problem_successes=8, problem_trials=16)
    counts = [12, 4, 0, 0, 1]
    own = [
        replace(value, successes=n, trials=16, planned=16)
        for n, value in zip(counts, values(row, [0] * 5), strict=True)
    ]
    alone = label_trajectory(row, own, LabelConfig(rule="abs_q"), PROMPTS)
    assert [p.label for p in alone] == [True, True, False, False, True]
    agreeing = LabelConfig(rule="abs_q", agree_with=[{"rule": "rel_ratio", "gamma": 0.7}])
    both = label_trajectory(row, own, agreeing, PROMPTS)
    # 4 of 16 is above 0, and less than 0.7 of 12 of 16.
    assert [p.split for p in both] == [UNSPLIT, DISPUTED, UNSPLIT, UNSPLIT, UNSPLIT]
    assert [p.label for p in both] == [p.label for p in alone]
