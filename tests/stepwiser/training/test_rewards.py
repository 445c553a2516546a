"""Rewards by hand: single verdicts, bare ones, and verdicts on whole solutions."""

from dataclasses import replace

import pytest

from stepwiser.training.rewards import outcome_prompts, score_groups, solution_reward
from tests.stepwiser.run.annotated_run import trajectory
from tests.stepwiser.training.test_prompt_buffer import prompt

YES, NO = "\\boxed{Positive}", "\\boxed{Negative}"


def test_a_verdict_is_held_against_the_label() -> None:
    texts = [[f"so {YES}", NO, "hm"], [YES, f"no {NO}", f"{YES} {NO}"]]
    asked = [prompt(0, True), prompt(1, False)]
    assert score_groups("verdict", asked, texts) == [[1, 0, 0], [0, 1, 1]]


def test_analysis_costs_where_only_a_verdict_is_asked_for() -> None:
    texts = [[f"so {YES}", NO, "", f" {YES}\n"], [NO, f"{NO}.", "hm", YES]]
    asked = [prompt(0, True), prompt(1, False)]
    assert score_groups("verdict_only", asked, texts) == [[-1, 0, 0, 1], [1, -1, -1, 0]]


@pytest.mark.parametrize(
    ("verdicts", "correct", "reward"),
    [
        ([True, True], True, 1),
        ([True, True], False, 0),
        ([True, False], True, 0),
        ([False, True], False, 1),
        ([True, None], True, 0),
        ([False, None], False, 0),
    ],
)
def test_a_solution_is_called_right_where_all_steps_are(
    verdicts: list[bool | None], correct: bool, reward: float
) -> None:
    assert solution_reward(verdicts, correct) == reward


def test_all_steps_of_a_solution_earn_the_same() -> None:
    right, wrong = (
        replace(row, trajectory_id=t)
        for t, row in (("r", prompt(0, True)), ("w", prompt(1, False)))
    )
    # Samples: all Positive, a Negative first, a Negative second; asked in any order.
    rewards = score_groups(
        "outcome",
        [right, wrong, wrong, right],
        [[YES, NO, YES], [YES, YES, NO], [YES, NO, YES], [YES, YES, NO]],
    )
    assert rewards == [[1, 0, 0], [0, 1, 1], [0, 1, 1], [1, 0, 0]]


def test_every_step_is_asked_about_with_the_outcome_as_its_label() -> None:
    row = trajectory("t1")
    prompts = outcome_prompts([row])
    assert [p.chunk for p in prompts] == row.chunks
    assert [p.history for p in prompts] == [row.chunks[:i] for i in range(len(row.chunks))]
    assert {p.label for p in prompts} == {row.correct}
    assert len({p.prompt_id for p in prompts}) == len(row.chunks)
