"""Steps of balanced classes out of prompts as annotation makes them."""

import random
from collections import Counter

import pytest

from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.training.prompt_buffer import PromptBuffer, Reading


def prompt(number: int, label: bool) -> JudgePrompt:
    return JudgePrompt(
        prompt_id=f"{number}",
        trajectory_id=f"t{number}",
        problem_id=f"p{number}",
        question="q",
        history=[],
        chunk="c",
        chunk_index=0,
        label=label,
        rule="rel_effective",
        value=0.5,
        previous_value=0.5,
        trials=16,
        split="train",
    )


def annotate(numbers: range, positive_share: float, seed: int = 0) -> list[JudgePrompt]:
    rng = random.Random(f"{seed}/{numbers}")
    return [prompt(n, rng.random() < positive_share) for n in numbers]


def run(reading: Reading, share: float, unit: int = 20) -> tuple[Counter[str], int, int]:
    """Train to the end, annotating only what is wanted; reads, prompts made, steps that waited."""
    buffer = PromptBuffer(reading, seed=0)
    reads: Counter[str] = Counter()
    made = waited = taken = 0
    while taken < reading.steps:
        if buffer.wanted():
            buffer.offer(annotate(range(made, made + unit), share))
            made += unit
        rows = buffer.take()
        if rows is None:
            assert buffer.wanted() > 0, "a step that waits asks for prompts"
            waited += 1
            continue
        taken += 1
        assert [row.label for row in rows] == [True] * reading.half(True) + [False] * reading.half(
            False
        )
        assert len({row.prompt_id for row in rows}) == reading.per_step
        reads.update(row.prompt_id for row in rows)
    assert buffer.wanted() == 0, "nothing is asked for that no step will read"
    return reads, made, waited


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
def test_little_is_made_that_nobody_reads(share: float) -> None:
    reads, made, _ = run(Reading(steps=60, per_step=32, ahead=2, most_reads=8), share)
    assert made / len(reads) < 1.05
    assert max(reads.values()) <= 8


def test_the_smaller_class_is_read_evenly() -> None:
    reading = Reading(steps=100, per_step=64, ahead=2, most_reads=8)
    reads, _, _ = run(reading, 0.8, unit=60)
    times = Counter(reads.values())
    assert times[1] > 3000, "Positive prompts are read once"
    again = [n for n in reads.values() if n > 1]
    assert sum(again) / len(again) == pytest.approx(4.0, abs=0.8)


def test_prompts_that_are_read_too_often_make_a_step_wait() -> None:
    # One Negative in twenty: four reads each are not enough without many more Positive ones.
    reads, made, waited = run(Reading(steps=20, per_step=16, ahead=2, most_reads=4), 0.95)
    assert waited
    assert max(reads.values()) <= 4
    assert made > len(reads)


@pytest.mark.parametrize("seen", [0, 10, 40, 200])
def test_a_class_that_has_not_been_seen_is_not_taken_for_the_rarest(seen: int) -> None:
    # A share guessed from no Negative at all asked for 9 times as many, and all were under way
    # before the first of them came.
    buffer = PromptBuffer(Reading(steps=8, per_step=16, ahead=2, most_reads=8), seed=0)
    buffer.offer(annotate(range(seen), 1.0))
    assert 0 < buffer.wanted() <= max(32, seen)


def test_at_the_start_a_step_needs_different_prompts_of_both_classes() -> None:
    buffer = PromptBuffer(Reading(steps=4, per_step=8, ahead=2, most_reads=8), seed=0)
    buffer.offer(annotate(range(40), 1.0))
    assert buffer.take() is None
    buffer.offer(prompt(n, False) for n in range(100, 103))
    assert buffer.take() is None, "three of the four"
    buffer.offer([prompt(103, False)])
    assert buffer.take() is not None


def test_what_is_held_is_bounded() -> None:
    reading = Reading(steps=1000, per_step=8, ahead=2, most_reads=4)
    buffer = PromptBuffer(reading, seed=0)
    for start in range(0, 5000, 50):
        buffer.offer(annotate(range(start, start + 50), 0.8))
        buffer.take()
        for label, shelf in buffer._shelves.items():
            assert shelf.supply(1e9) <= 1.1 * reading.capacity(label) + 1
    assert buffer.wanted() == 0


def test_after_the_last_problem_everything_may_be_read_again() -> None:
    buffer = PromptBuffer(Reading(steps=50, per_step=8, ahead=2, most_reads=2), seed=0)
    buffer.offer([prompt(0, True), prompt(1, False), prompt(2, False)])
    assert buffer.take() is None
    buffer.close()
    reads: Counter[str] = Counter()
    for _ in range(10):
        rows = buffer.take()
        assert rows is not None
        assert [row.label for row in rows] == [True] * 4 + [False] * 4
        reads.update(row.prompt_id for row in rows)
    assert reads == {"0": 40, "1": 20, "2": 20}


def test_one_class_alone_is_an_error() -> None:
    buffer = PromptBuffer(Reading(steps=5, per_step=8, ahead=2, most_reads=2), seed=0)
    buffer.offer(annotate(range(10), 1.0))
    assert buffer.take() is None
    buffer.close()
    with pytest.raises(UserError, match=r"10 positive and 0 negative"):
        buffer.take()


def test_a_second_start_knows_what_was_read() -> None:
    reading = Reading(steps=10, per_step=4, ahead=1, most_reads=8)
    rows = [prompt(n, n % 2 == 0) for n in range(12)]
    first = PromptBuffer(reading, seed=0)
    first.offer(rows)
    read = [first.take() or [] for _ in range(2)]
    counts = Counter(row.prompt_id for step in read for row in step)
    second = PromptBuffer(reading, seed=0)
    second.offer(rows, counts)
    second.skip(2)
    assert second.unread == first.unread
    third = second.take() or []
    assert not {row.prompt_id for row in third} & counts.keys(), "what is fresh comes first"
    assert second.wanted() == first.wanted() or first.take() is not None


def test_extra_prompts_of_a_step_are_no_step() -> None:
    buffer = PromptBuffer(Reading(steps=2, per_step=4, ahead=4, most_reads=8), seed=0)
    buffer.offer(prompt(n, n % 2 == 0) for n in range(6))
    buffer.take()
    before = buffer.wanted()
    assert buffer.take(extra=True) is not None
    assert buffer.wanted() >= before > 0
    buffer.take()
    assert buffer.wanted() == 0
