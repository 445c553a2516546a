"""Several sets of solutions: their average, and names that tell them apart."""

from __future__ import annotations

import pytest

from pipelines.evaluation.trust import average
from stepwiser.config import load_config
from stepwiser.errors import UserError
from tests.support.paths import ROOT


def test_the_average_is_that_of_the_sets() -> None:
    def scored(f1: float, error: float) -> dict:
        row = {
            "error_accuracy": f1, "correct_accuracy": f1, "f1": f1, "f1_standard_error": error,
            "n_error": 10, "n_correct": 10, "undefined_because": "",
        }  # fmt: skip
        return {
            "single": {"official": row, "by_final_answer": {**row, "f1": None}},
            "majority": {"official": row, "by_final_answer": row},
        }

    sets = {"a": scored(0.2, 0.03), "b": scored(0.6, 0.04)}
    found = average(sets)
    official = found["single"]["official"]
    assert official["f1"] == pytest.approx(0.4)
    assert official["f1_standard_error"] == pytest.approx(0.025)  # hypot(0.03, 0.04) / 2
    assert official["subsets"] == ("a", "b")
    # A set without F1 leaves the average undefined: it is never that of the others.
    assert found["single"]["by_final_answer"]["f1"] is None


def test_two_sets_of_one_name_are_refused() -> None:
    more = "evaluate.more=[{source: a.json, name: embedded}]"
    with pytest.raises(UserError, match="given to two sets"):
        load_config(ROOT / "configs" / "embedded.yaml", [more])


def test_the_papers_four_subsets_are_asked_for() -> None:
    for name in ("paper-1.5b", "paper-7b"):
        config = load_config(ROOT / "configs" / f"{name}.yaml").evaluate
        assert len({config.name, *(one.name for one in config.more)}) == 4
