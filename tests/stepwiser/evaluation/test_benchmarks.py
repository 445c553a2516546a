"""Figures of benchmarks against sums by hand, intervals, thresholds, and the table's files."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stepwiser.data.records import Judgement, StepItem
from stepwiser.errors import UserError
from stepwiser.evaluation.benchmarks import (
    F1,
    MACRO_F1,
    PRM_SCORE,
    Cost,
    benchmark_score,
    to_csv,
    to_latex,
)
from stepwiser.evaluation.bootstrap import bootstrap
from stepwiser.evaluation.processbench import first_negative, score_official
from stepwiser.evaluation.step_scores import score_prmbench
from stepwiser.evaluation.thresholds import choose_threshold, refuse_shared_problems

FREE = Cost(2.0, 30, 70)


def item(name: str, label: int, steps: int = 3, problem: str = "", **more: object) -> StepItem:
    words = [f"step {i}" for i in range(steps)]
    return StepItem(name, problem or name, words, label, label == -1, "", **more)  # type: ignore[arg-type]


def rows(
    name: str, *votes: Sequence[int] | int, scores: Sequence[float | None] = ()
) -> list[Judgement]:
    found = []
    for i, codes in enumerate(votes):
        codes = [codes] if isinstance(codes, int) else list(codes)
        known = [code for code in codes if code != -1]
        verdict = 2 * sum(known) > len(known) if known else None
        score = scores[i] if scores else None
        found.append(Judgement(name, "j", i, codes, verdict, score, "", 5, 0, 10, codes.count(-1)))
    return found


# --- PRMBench -------------------------------------------------------------------------------------


def test_prmscore_is_that_of_the_paper() -> None:
    """Micro over all steps, those after a mistake too; right steps are the positive class."""
    items = [
        item("a", 1, wrong_steps=[1], category="circular"),
        item("b", 0, wrong_steps=[0, 2], category="deception"),
        item("c", -1, wrong_steps=[], category="multi_solutions"),
    ]
    said = [*rows("a", 1, 0, 1), *rows("b", 1, 1, 0), *rows("c", 1, 0, -1)]
    found = score_prmbench(items, said)
    # a: TP TN TP; b: FP TP TN; c: TP FN, and one step without a verdict, which counts nowhere.
    f1 = 2 * 4 / (2 * 4 + 1 + 1)
    f1_negative = 2 * 2 / (2 * 2 + 1 + 1)
    assert found["f1"] == pytest.approx(f1)
    assert found["f1_negative"] == pytest.approx(f1_negative)
    assert found["prm_score"] == pytest.approx(0.5 * f1 + 0.5 * f1_negative)
    assert found["missing_share"] == pytest.approx(1 / 9)
    categories = found["categories"]
    assert categories["circular"]["prm_score"] == 1.0
    assert categories["deception"]["prm_score"] == pytest.approx(0.5 * 2 / 3 + 0.5 * 2 / 3)
    assert categories["multi_solutions"]["prm_score"] == pytest.approx(2 / 3)  # F1 alone
    assert found["dimensions"]["simplicity"] == 1.0
    assert found["dimensions"]["sensitivity"] == pytest.approx(2 / 3)
    assert found["dimensions"]["soundness"] is None
    pair = benchmark_score("j", "prmbench", items, said, FREE)
    assert pair.metric == PRM_SCORE and pair.value == pytest.approx(found["prm_score"])
    assert (pair.no_verdict, pair.failed) == (pytest.approx(1 / 9), 1)


def test_who_refuses_nothing_has_no_half_of_it() -> None:
    items = [item("a", 1, wrong_steps=[1], category="circular")]
    assert score_prmbench(items, rows("a", 1, 1, 1))["prm_score"] == pytest.approx(0.5 * 4 / 5)
    with pytest.raises(UserError, match="no label of every step"):
        score_prmbench([item("a", 1)], rows("a", 1, 1, 1))


# --- intervals ------------------------------------------------------------------------------------


def test_first_wrong_step_is_the_official_score_of_every_vote() -> None:
    rng = random.Random(1)
    items = [item(f"i{i}", rng.choice([-1, 0, 2]), problem=f"p{i % 20}") for i in range(60)]
    said = [
        row
        for one in items
        for row in rows(one.id, *([rng.choice([1, 1, 0, -1]) for _ in range(3)] for _ in range(3)))
    ]
    pair = benchmark_score("j", "set", items, said, FREE)
    by_vote = []
    for vote in range(3):
        verdicts = [
            [
                bool(r.votes[vote]) if r.votes[vote] != -1 else None
                for r in said
                if r.item_id == one.id
            ]
            for one in items
        ]
        by_vote.append(
            score_official([first_negative(v) for v in verdicts], [one.label for one in items]).f1
        )
    assert pair.metric == F1 and pair.value == pytest.approx(np.mean([f or 0.0 for f in by_vote]))
    verdicts = [[r.verdict for r in said if r.item_id == one.id] for one in items]
    majority = score_official([first_negative(v) for v in verdicts], [one.label for one in items])
    assert pair.majority == pytest.approx(majority.f1)
    assert pair.problems == 20 and pair.low is not None and pair.high is not None
    assert pair.low < pair.value < pair.high
    assert benchmark_score("j", "set", items, said, FREE) == pair  # the same resamples


def test_intervals_take_problems_as_the_units() -> None:
    """Five solutions of a problem that stand and fall together are no five pieces of evidence."""
    rng = np.random.default_rng(0)
    share = lambda counts: counts[..., 0] / counts[..., 1]  # noqa: E731
    covered: dict[str, list[bool]] = {"problems": [], "solutions": []}
    for _ in range(120):
        right = rng.random(40) < 0.6
        sums = np.array([[[float(ok), 1.0]] for ok in right for _ in range(5)])
        units = {"problems": [i // 5 for i in range(200)], "solutions": list(range(200))}
        for name, of in units.items():
            found = bootstrap(sums, [str(i) for i in of], share)
            assert found.low is not None and found.high is not None
            covered[name].append(found.low <= 0.6 <= found.high)
    assert np.mean(covered["problems"]) >= 0.87 > 0.75 > np.mean(covered["solutions"])


def test_without_what_it_needs_a_figure_is_none() -> None:
    only_right = benchmark_score("j", "s", [item("a", -1)], rows("a", 1, 1, 1), FREE)
    assert only_right.value is None and only_right.low is None
    one = benchmark_score("j", "s", [item("a", -1, problem="p"), item("b", 0, problem="p")],
                          [*rows("a", 1, 1, 1), *rows("b", 0, 1, 1)], FREE)  # fmt: skip
    assert one.value == 1.0 and one.low is None and one.majority is None
    pair = [item("a", -1), item("b", 0)], [*rows("a", 1, 1, 1), *rows("b", 0, 1, 1)]
    alike = benchmark_score("j", "s", *pair, FREE)  # [1, 1] would claim too much
    assert (alike.value, alike.low, alike.problems) == (1.0, None, 2)


def test_monte_carlo_labels_count_where_there_is_one() -> None:
    items = [item("a", -1), item("b", -1)]
    said = [*rows("a", 1, 0, 0), *rows("b", 0, 0, 1)]
    truth = {("a", 0): True, ("a", 1): False, ("b", 2): True}
    pair = benchmark_score("j", "own", items, said, FREE, truth)
    assert (pair.metric, pair.value) == (MACRO_F1, 1.0)
    flipped = benchmark_score("j", "own", items, said, FREE, {**truth, ("b", 2): False})
    assert flipped.value == pytest.approx(0.5 * 2 / 3 + 0.5 * 2 / 3)


def test_a_judge_gains_nothing_by_silence_on_own_chunks() -> None:
    """Of two right and two wrong chunks one of each is answered, and that rightly."""
    items = [item("a", -1, steps=4)]
    truth = {("a", 0): True, ("a", 1): True, ("a", 2): False, ("a", 3): False}
    said = rows("a", 1, -1, 0, -1)
    silent = benchmark_score("j", "own", items, [replace(r, failed=0) for r in said], FREE, truth)
    # Either class: one hit, one lost, nothing wrongly: 2 / (2 + 1).
    assert silent.value == pytest.approx(2 / 3)
    assert (silent.answered, silent.no_verdict, silent.failed) == (1.0, 0.5, 0)
    # A request that nobody has answered says nothing of the judge.
    failed = benchmark_score("j", "own", items, said, FREE, truth)
    assert (failed.value, failed.failed) == (1.0, 2)
    # Of the last chunk two votes have failed and the third is silent.
    votes = rows("a", [1, 1, 1], [-1, -1, -1], [0, 0, 0], [-1, -1, -1])
    votes[3] = replace(votes[3], failed=2)
    three = benchmark_score("j", "own", items, votes, FREE, truth)
    last = 0.5 * 1.0 + 0.5 * 2 / 3
    assert three.value == pytest.approx((1.0 + 1.0 + last) / 3)
    assert three.majority == pytest.approx(last)


# --- thresholds -----------------------------------------------------------------------------------


def test_the_threshold_is_the_best_there_is() -> None:
    """Against every threshold tried by hand, on random scores with ties and gaps."""
    rng = random.Random(3)
    for _ in range(20):
        items = [item(f"i{i}", rng.choice([-1, 0, 1, 2])) for i in range(25)]
        items += [item("r", -1), item("w", 1)]
        said = []
        for one in items:
            scores = [rng.choice([None, 0.1, 0.2, 0.4, 0.40001, 0.9]) for _ in one.steps]
            said += rows(one.id, *(1 for _ in one.steps), scores=scores)

        def f1(threshold: float, items=items, said=said) -> float:
            predictions = []
            for one in items:
                mine = [r.score for r in said if r.item_id == one.id]
                verdicts = [None if s is None else s >= threshold for s in mine]
                predictions.append(first_negative(verdicts))
            return score_official(predictions, [one.label for one in items]).f1 or 0.0

        chosen = choose_threshold(items, said, "split")
        assert chosen.f1 == pytest.approx(f1(chosen.value))
        assert chosen.f1 >= max(f1(t) for t in np.linspace(0, 1, 201)) - 1e-12
    with pytest.raises(UserError, match="0 wrong and 1 right"):
        choose_threshold([item("a", -1)], rows("a", 1, 1, 1), "split")


def test_a_threshold_is_not_chosen_on_what_is_scored() -> None:
    split = [item("a", -1, problem="Two  and\ntwo?"), item("b", 0, problem="Three?")]
    refuse_shared_problems("split", split, {"test": [item("c", -1, problem="Four?")]})
    shared = {"test": [item("c", -1, problem="Two and two?")]}
    with pytest.raises(UserError, match="has 1 problems of the set test"):
        refuse_shared_problems("split", split, shared)


# --- files ----------------------------------------------------------------------------------------


def test_the_table_as_csv_and_latex() -> None:
    items = [item("a", -1), item("b", 0), item("c", 1)]
    said = [*rows("a", 1, 1, 1), *rows("b", 0, 1, 1), *rows("c", 1, 1, 1)]
    pair = benchmark_score("my_judge", "set & co", items, said, Cost(6.0, 30, 60, 0.25))
    other = replace(pair, judge="b", value=None, low=None, high=None)
    read = list(csv.DictReader(io.StringIO(to_csv([pair, other]))))
    assert float(read[0]["value"]) == pytest.approx(pair.value)
    assert (read[0]["price"], read[1]["value"]) == ("0.25", "")
    text = to_latex([pair, other])
    assert r"my\_judge & 66.7 [" in text and r" & 30 & 2.00 \\" in text
    assert r"set \& co" in text and "b & -- & 30" in text
    assert {line.count("&") - line.count(r"\&") for line in text.splitlines() if "&" in line} == {3}
