"""Scores against hand-made cases and a second implementation of the official definition."""

from __future__ import annotations

import math
import random

import pytest

from stepwiser.evaluation.processbench import (
    ProcessBenchScore,
    average_scores,
    first_negative,
    missing_verdicts,
    score_by_final_answer,
    score_official,
)


@pytest.mark.parametrize(
    ("verdicts", "index", "missing"),
    [
        ([], -1, 0),
        ([True, True], -1, 0),
        ([True, False, False], 1, 0),
        ([None, True, False, None], 2, 1),  # what follows the first Negative was never asked
        ([True, None], -1, 1),
    ],
)
def test_first_negative(verdicts: list[bool | None], index: int, missing: int) -> None:
    assert first_negative(verdicts) == index
    assert missing_verdicts(verdicts) == missing


def test_official_by_hand() -> None:
    # Erroneous items: hit, too late, missed, hit → .5. Correct items: hit, hit, false alarm → 2/3.
    score = score_official([1, 3, -1, 0, -1, -1, 2], [1, 2, 0, 0, -1, -1, -1])
    assert (score.n_error, score.n_correct) == (4, 3)
    assert score.error_accuracy == 0.5
    assert score.correct_accuracy == pytest.approx(2 / 3)
    assert score.f1 == pytest.approx(4 / 7)
    assert score.undefined_because == ""


def test_final_answer_protocol_differs() -> None:
    predictions, labels = [1, -1, 2, -1], [1, 0, 2, -1]
    right = [False, True, True, True]  # items 1 and 2 reach a right answer by a wrong step
    score = score_by_final_answer(predictions, labels, right)
    assert (score.error_accuracy, score.n_error) == (1.0, 1)
    assert score.correct_accuracy == pytest.approx(2 / 3)
    official = score_official(predictions, labels)
    assert (official.error_accuracy, official.n_error) == (pytest.approx(2 / 3), 3)


def test_protocols_agree_when_answers_agree_with_labels() -> None:
    predictions, labels = [1, -1, 2, -1], [1, 0, -1, -1]
    by_answer = score_by_final_answer(predictions, labels, [label == -1 for label in labels])
    assert by_answer == score_official(predictions, labels)


def official_reference(items: list[dict[str, int]]) -> float:
    """The benchmark's definition written once more, over records as its files hold them."""
    error = [item["prediction"] == item["label"] for item in items if item["label"] != -1]
    correct = [item["prediction"] == item["label"] for item in items if item["label"] == -1]
    acc1, acc2 = sum(error) / len(error) * 100, sum(correct) / len(correct) * 100
    return 2 * acc1 * acc2 / (acc1 + acc2)


def test_against_the_official_definition() -> None:
    rng = random.Random(0)
    for _ in range(100):
        labels = [-1, 0] + [rng.choice([-1, -1, 0, 1, 2]) for _ in range(50)]
        predictions = [y if rng.random() < 0.7 else rng.choice([-1, 0, 1, 2]) for y in labels]
        items = [{"label": y, "prediction": p} for y, p in zip(labels, predictions, strict=True)]
        f1 = score_official(predictions, labels).f1
        assert f1 is not None
        assert 100 * f1 == pytest.approx(official_reference(items))


def test_standard_error_matches_resampling() -> None:
    rng = random.Random(1)
    p1, p2, n1, n2 = 0.6, 0.8, 200, 150
    f1s, errors = [], []
    for _ in range(2000):
        predictions = [0 if rng.random() < p1 else 1 for _ in range(n1)]
        predictions += [-1 if rng.random() < p2 else 0 for _ in range(n2)]
        score = score_official(predictions, [0] * n1 + [-1] * n2)
        assert score.f1 is not None and score.f1_standard_error is not None
        f1s.append(score.f1)
        errors.append(score.f1_standard_error)
    mean = sum(f1s) / len(f1s)
    spread = math.sqrt(sum((f - mean) ** 2 for f in f1s) / (len(f1s) - 1))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.05)


def test_a_side_without_items_is_undefined_not_zero() -> None:
    score = score_official([-1, 0], [-1, -1])
    assert score.f1 is None and score.error_accuracy is None and score.f1_standard_error is None
    assert score.correct_accuracy == 0.5
    assert score.undefined_because == "no erroneous items"
    assert score_official([0], [0]).undefined_because == "no correct items"
    assert score_official([], []).undefined_because == "no erroneous and no correct items"


def test_all_wrong_is_zero_not_undefined() -> None:
    score = score_official([1, 0], [0, -1])
    assert (score.f1, score.undefined_because) == (0.0, "")
    assert score.f1_standard_error is None


def test_average() -> None:
    a = ProcessBenchScore(0.4, 0.6, 0.48, 10, 10, 0.03)
    b = ProcessBenchScore(0.8, 1.0, 0.90, 10, 10, 0.04)
    mean = average_scores({"gsm8k": a, "math": b})
    assert mean.f1 == pytest.approx(0.69)
    assert mean.error_accuracy == pytest.approx(0.6)
    assert mean.correct_accuracy == pytest.approx(0.8)
    assert mean.f1_standard_error == pytest.approx(0.025)  # sqrt(.03² + .04²) / 2
    assert mean.subsets == ("gsm8k", "math")


def test_average_names_the_undefined_subset() -> None:
    whole = ProcessBenchScore(0.4, 0.6, 0.48, 10, 10, 0.03)
    mean = average_scores({"math": whole, "omni": score_official([-1], [-1])})
    assert mean.f1 is None and mean.f1_standard_error is None
    assert mean.undefined_because == "omni: no erroneous items"
    with pytest.raises(ValueError, match="at least one subset"):
        average_scores({})


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="got 1 for 2 labels"):
        score_official([1], [1, 2])
    with pytest.raises(ValueError, match="prediction of item 1 must be -1 or a step index, got -2"):
        score_official([1, -2], [1, 2])
    with pytest.raises(ValueError, match="got 1 for 2"):
        score_by_final_answer([1, 1], [1, 2], [True])
