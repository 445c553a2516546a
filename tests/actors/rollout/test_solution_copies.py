"""A solution that comes twice in one step is judged twice."""

from dataclasses import replace

from actors.rollout.prompt_source import FinishedSolutions
from stepwiser.data.records import JudgePrompt, group_by
from stepwiser.training.rewards import score_groups
from tests.stepwiser.training.test_prompt_buffer import prompt

YES, NO = "\\boxed{Positive}", "\\boxed{Negative}"


def _solutions() -> list[JudgePrompt]:
    """Two right solutions and one wrong one, of two steps each."""
    return [
        replace(prompt(10 * n + i, n < 2), trajectory_id=f"t{n}", chunk_index=i)
        for n in range(3)
        for i in range(2)
    ]


async def test_each_copy_earns_what_its_own_verdicts_earn() -> None:
    # Two solutions of either outcome a step: the only wrong one has to come twice.
    step = await FinishedSolutions(_solutions(), 8, seed=0).sample(0, 0)
    assert [p.label for p in step] == [True] * 4 + [False] * 4
    wrong = step[4:]
    assert [p.prompt_id for p in wrong] == ["20", "21"] * 2
    # Of its first copy both steps are accepted, which is a mistake; the second one is found out.
    texts = [[YES], [YES], [YES], [YES], [YES], [YES], [YES], [NO]]
    assert score_groups("outcome", step, texts)[4:] == [[0], [0], [1], [1]]


async def test_an_epoch_that_ends_within_a_step() -> None:
    rows = [
        replace(prompt(10 * n + i, n % 2 == 0), trajectory_id=f"t{n}", chunk_index=i)
        for n in range(6)
        for i in range(2)
    ]
    source = FinishedSolutions(rows, 8, seed=0)
    for number in range(12):
        step = await source.sample(number, 0)
        solutions = group_by(step, "trajectory_id").values()
        assert [len(steps) for steps in solutions] == [2] * 4, "none is joined with another"
        assert [p.prompt_id for p in await source.sample(number, 0)] == [p.prompt_id for p in step]
