"""What a step reads of an annotation that goes on, and what it reads again after a restart."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from actors.rollout.prompt_source import (
    FinishedPrompts,
    FinishedSolutions,
    LiveOptions,
    LivePrompts,
)
from stepwiser.data.records import group_by
from stepwiser.errors import UserError
from stepwiser.run.read_log import READ_LOG, PromptReadLog, count_reads
from stepwiser.training.prompt_buffer import Reading
from tests.stepwiser.training.test_prompt_buffer import prompt

READING = Reading(steps=6, per_step=4, ahead=2, most_reads=4)


def _source(folder: Path) -> LivePrompts:
    return LivePrompts(LiveOptions(READING, str(folder), remembered=3), seed=0)


def _rows(*numbers: int):
    return [prompt(n, n % 2 == 0) for n in numbers]


def _ids(rows) -> list[str]:
    return [row.prompt_id for row in rows]


async def test_a_step_waits_for_its_prompts(tmp_path: Path) -> None:
    source = _source(tmp_path)
    step = asyncio.ensure_future(source.sample(0, 0))
    source.offer(_rows(0, 1, 2))
    await asyncio.sleep(0.01)
    assert not step.done() and source.wanted() > 0
    source.offer(_rows(3))
    assert sorted(_ids(await step)) == ["0", "1", "2", "3"]
    assert await source.sample(0, 0) == await step, "every rank reads the same"


async def test_a_restart_reads_the_same_again_and_then_goes_on(tmp_path: Path) -> None:
    source = _source(tmp_path)
    source.offer(_rows(*range(12)))
    before = [_ids(await source.sample(step, 0)) for step in range(3)]
    further = _ids(await source.sample(2, 1))
    # Killed while it wrote: that step has been given to nobody.
    with (tmp_path / READ_LOG).open("a") as file:
        file.write('{"step": 3, "dra')
    again = _source(tmp_path)
    second = asyncio.ensure_future(again.sample(1, 0))
    await asyncio.sleep(0.01)
    assert not second.done(), "the prompts are not there yet"
    again.offer(_rows(*range(14)))
    assert _ids(await second) == before[1]
    assert _ids(await again.sample(2, 0)) == before[2]
    assert _ids(await again.sample(2, 1)) == further
    fourth = _ids(await again.sample(3, 0))
    reads = PromptReadLog(str(tmp_path)).read()
    assert [(d.step, d.number) for d in reads] == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]
    assert list(reads[-1].prompts) == fourth
    read = count_reads(reads[:-1])
    assert all(read[i] <= 1 for i in fourth), "the least read come first"


async def test_steps_older_than_the_log_remembers_can_be_read_anew(tmp_path: Path) -> None:
    source = _source(tmp_path)
    source.offer(_rows(*range(40)))
    for step in range(6):
        await source.sample(step, 0)
    again = _source(tmp_path)
    again.offer(_rows(*range(40)))
    assert len(await again.sample(0, 0)) == 4
    assert again.wanted() == 0, "the steps of this training were counted before"


async def test_a_failed_annotation_ends_the_wait(tmp_path: Path) -> None:
    source = _source(tmp_path)
    step = asyncio.ensure_future(source.sample(0, 0))
    await asyncio.sleep(0.01)
    source.fail("all engines are lost")
    with pytest.raises(UserError, match="all engines are lost"):
        await step


async def test_when_all_is_annotated_a_step_does_with_what_there_is(tmp_path: Path) -> None:
    source = _source(tmp_path)
    source.offer(_rows(0, 1))
    step = asyncio.ensure_future(source.sample(0, 0))
    await asyncio.sleep(0.01)
    assert not step.done()
    source.close()
    assert sorted(_ids(await step)) == ["0", "0", "1", "1"]


async def test_without_balance_a_step_is_a_part_of_all() -> None:
    rows = [prompt(n, n < 30) for n in range(40)]
    source = FinishedPrompts(rows, 10, seed=0, balanced=False)
    steps = [await source.sample(step, 0) for step in range(4)]
    read = [row.prompt_id for step in steps for row in step]
    assert sorted(read) == sorted(row.prompt_id for row in rows), "each once in an epoch"
    assert any(sum(row.label for row in step) != 5 for step in steps)
    assert await source.sample(2, 0) == steps[2] and await source.sample(2, 1) != steps[2]
    balanced = FinishedPrompts(rows, 10, seed=0)
    assert [row.label for row in await balanced.sample(1, 0)] == [True] * 5 + [False] * 5


async def test_solutions_come_whole_and_as_many_of_either_outcome() -> None:
    rows = [
        replace(prompt(10 * n + i, n % 4 > 0), trajectory_id=f"t{n}")
        for n in range(8)
        for i in range(3 + n % 2)
    ]
    source = FinishedSolutions(rows, 14, seed=0)
    step = await source.sample(0, 0)
    solutions = group_by(step, "trajectory_id")
    # 3.5 steps each: four solutions are about 14 prompts.
    assert len(solutions) == 4
    assert sum(steps[0].label for steps in solutions.values()) == 2
    for name, steps in solutions.items():
        assert steps == [row for row in rows if row.trajectory_id == name]
    with pytest.raises(UserError, match="6 right and 0 wrong"):
        FinishedSolutions([row for row in rows if row.label], 14, seed=0)
