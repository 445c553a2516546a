"""What a judge is fine-tuned on of its own judgements."""

from collections import Counter
from random import Random

import pytest

from stepwiser.prompting.generation import Sample
from stepwiser.training.rejection_sampling import choose_prompts, round_figures, select_right
from tests.stepwiser.training.test_prompt_buffer import prompt

YES, NO = "\\boxed{Positive}", "\\boxed{Negative}"


def _samples(*texts: str, finish: str = "stop") -> list[Sample]:
    return [Sample((1,) * len(text), text, finish) for text in texts]


def test_only_right_judgements_stay_and_classes_are_balanced() -> None:
    asked = [prompt(0, True), prompt(1, True), prompt(2, False)]
    groups = [
        _samples(YES, f"a {YES}", f"b {YES}", NO),
        _samples(NO, NO, NO, "hm"),
        [*_samples(NO, YES), *_samples(f"long {NO}", finish="length")],
    ]
    kept = select_right(asked, groups, 2, Random(0))
    # At most two of the first prompt, none of the second, one of the third: one of either class.
    assert Counter(row.label for row, _ in kept) == {True: 1, False: 1}
    assert {row.prompt_id for row, _ in kept} == {"0", "2"}
    assert [sample.text for row, sample in kept if not row.label] == [NO]


def test_a_class_without_a_right_judgement_leaves_nothing() -> None:
    asked = [prompt(0, True), prompt(1, False)]
    assert select_right(asked, [_samples(YES), _samples(YES)], 2, Random(0)) == []


def test_prompts_of_a_round_are_half_of_each_class() -> None:
    rows = [prompt(n, n < 20) for n in range(30)]
    chosen = choose_prompts(rows, 12, Random(0))
    assert Counter(row.label for row in chosen) == {True: 6, False: 6}
    assert len(choose_prompts(rows, 40, Random(0))) == 30, "as far as there are any"
    assert choose_prompts(rows, None, Random(0)) == rows


def test_figures_of_a_round() -> None:
    asked = [prompt(0, True), prompt(1, True), prompt(2, False)]
    figures = round_figures(asked, [_samples(YES, NO), _samples(YES, YES), _samples("hm", NO)])
    # Positives 3 of 4, negatives 1 of 2.
    assert figures["reward"] == pytest.approx((0.75 + 0.5) / 2)
    assert (figures["accuracy_positive"], figures["accuracy_negative"]) == (0.75, 0.5)
    assert figures["share_no_verdict"] == pytest.approx(1 / 6)
    assert figures["response_length"] == pytest.approx((5 * len(YES) + 2) / 6)
