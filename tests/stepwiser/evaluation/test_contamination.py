"""Overlap of problems: made cases with known runs, the embedded task, and real data where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwiser.evaluation.contamination import Overlap, check, find_overlaps, words_of
from stepwiser.tasks import make_problems

EGGS = (
    "Janet has sixteen ducks that lay 3 eggs a day each, and she sells every egg at the market "
    "for $2.50. How much does she make?"
)


def test_words_keep_numbers_and_drop_layout() -> None:
    assert words_of("Ana's  1,200 Coins;\n\\frac{1}{2} + x_1?") == (
        "ana", "s", "1,200", "coins", "frac", "1", "2", "x", "1",
    )  # fmt: skip
    assert words_of("ﬁve ５") == ("five", "5")


def overlap(training: list[str], item: str, n: int = 13) -> Overlap | None:
    found = find_overlaps(training, [item], n)
    return found[0] if found else None


def test_the_same_problem_in_another_layout_is_exact() -> None:
    found = overlap(["another one", EGGS], EGGS.upper().replace(" ", "\n").replace(",", ""))
    assert found is not None
    assert (found.item, found.training, found.exact, found.share) == (0, 1, True, 1.0)


def test_shared_runs_are_counted() -> None:
    words = [f"w{chr(97 + i)}" for i in range(20)]
    training = [" ".join(words)]
    # The first 14 words and then others: 2 runs of 13 shared, of 20 − 13 + 1.
    found = overlap(training, " ".join([*words[:14], *"uvwxyz"]))
    assert found is not None and not found.exact
    assert (found.shared, found.of, found.n) == (2, 8, 13)
    assert overlap(training, " ".join([*words[:12], *"uvwxyz"])) is None
    # One number or word changed in the middle breaks every run of a problem this short.
    assert overlap(training, " ".join([*words[:10], "other", *words[11:]])) is None


def test_the_training_problem_with_most_in_common_is_named() -> None:
    words = [f"w{chr(97 + i)}" for i in range(16)]
    training = [" ".join(words[:13]), " ".join(words[:15]), " ".join([*words[:15], "x"])]
    found = overlap(training, " ".join(words))
    assert found is not None and (found.training, found.shared) == (1, 3)
    same = overlap(
        [*training, " ".join(words), " ".join([*words, *"xyz", *words])], " ".join(words)
    )
    assert same is not None and (same.training, same.exact) == (3, True)


def test_short_problems() -> None:
    nine = "what is the sum of 12 and 30 exactly"
    training = [nine, "solve x"]
    # Shorter than 13 on both sides: the whole of the shorter one inside the other.
    longer = overlap(training, f"tell me quickly {nine} please")
    assert longer is not None and (longer.n, longer.shared, longer.exact) == (9, 1, False)
    inside = overlap([f"tell me {nine} or not, and why so"], nine)
    assert inside is not None and (inside.n, inside.share, inside.exact) == (9, 1.0, False)
    # A few common words prove nothing, the same problem does.
    assert overlap(training, "please solve x and then y for all of the cases in the list") is None
    same = overlap(training, "Solve: x")
    assert same is not None and same.exact
    assert overlap([*training, "…"], "…") is None


def test_check_lists_and_counts() -> None:
    result = check([EGGS, EGGS, "x"], {"a": [("1", EGGS), ("2", EGGS)], "b": [("3", "new")]}, 13)
    assert result["training_problems"] == 2
    assert (result["sets"]["a"]["problems"], result["sets"]["a"]["exact"]) == (1, 1)
    (match,) = result["sets"]["a"]["matches"]
    assert match["item_ids"] == ["1", "2"] and match["training_problem"] == EGGS
    assert result["sets"]["b"] == {"problems": 1, "flagged": 0, "exact": 0, "matches": []}
    with pytest.raises(ValueError, match="at least 1"):
        check([], {"a": []}, 0)


def test_the_embedded_task_is_clean_across_seeds_and_caught_within_one() -> None:
    train = [p.question for p in make_problems(500, seed=1)]
    fresh = [(str(i), p.question) for i, p in enumerate(make_problems(500, seed=2))]
    renamed = [
        (str(i), text.replace("ana ", "tom ") if "ana " in text else text.replace("tom ", "ana "))
        for i, text in enumerate(train[:50])
    ]
    mixed = [(str(i), text) for i, text in enumerate(train[:50])]
    result = check(train, {"fresh": fresh, "same": mixed, "renamed": renamed}, 8)
    assert result["sets"]["fresh"]["flagged"] == 0
    assert result["sets"]["same"]["exact"] == 50
    # Whoever has the coins, it is the same calculation.
    assert result["sets"]["renamed"]["flagged"] == 50


@pytest.mark.data
def test_processbench_comes_from_the_test_half(shared_data: Path) -> None:
    def questions(split: str) -> list[str]:
        lines = (shared_data / "gsm8k" / f"{split}.jsonl").read_text().splitlines()
        return [json.loads(line)["question"] for line in lines]

    rows = json.loads((shared_data / "processbench" / "gsm8k.json").read_text())
    items = [(row["id"], row["problem"]) for row in rows]
    problems = len({text for _, text in items})
    by_test = check(questions("test"), {"pb": items}, 13)["sets"]["pb"]
    by_train = check(questions("train"), {"pb": items}, 13)["sets"]["pb"]
    assert by_test["exact"] > 0.9 * problems
    assert by_train["exact"] == 0 and by_train["flagged"] < 0.1 * problems
