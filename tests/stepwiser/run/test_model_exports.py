"""Best, last and used judge: which directory is which, also after a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stepwiser.run.model_exports import (
    EVALUATION_FILE,
    Best,
    best_of,
    evaluations_since,
    keep_if_best,
    link_model,
)

KEY = "heldout_balanced"


def _model(directory: Path, version: int, score: float) -> str:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_text(str(version))
    evaluation = {"version": version, KEY: score}
    (directory / EVALUATION_FILE).write_text(json.dumps(evaluation))
    return str(directory)


def test_the_best_is_kept_and_the_earlier_one_of_equals(tmp_path):
    best = tmp_path / "judge-best"
    scores = [float("nan"), 0.5, 0.7, 0.7, 0.6, 0.9]
    kept = [
        keep_if_best(_model(tmp_path / "candidates" / str(v), v, score), str(best), KEY)
        for v, score in enumerate(scores, 1)
    ]
    assert kept == [False, True, True, False, False, True]
    assert best_of(str(best), KEY) == Best(6, 0.9)
    assert (best / "model.safetensors").read_text() == "6"
    assert not list((tmp_path / "candidates").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidates", "judge-best"]


def test_a_crash_between_the_renames_is_made_good(tmp_path):
    best = tmp_path / "judge-best"
    _model(tmp_path / "judge-best.old", 1, 0.5)  # the new one was not in its place yet
    assert keep_if_best(_model(tmp_path / "candidate", 2, 0.6), str(best), KEY)
    assert [p.name for p in tmp_path.iterdir()] == ["judge-best"]


def test_patience_counts_evaluations_after_the_best_up_to_now():
    assert evaluations_since(None, 30, [10, 20, 30]) == 3
    assert evaluations_since(Best(10, 0.5), 30, [10, 20, 30]) == 2
    # Lines of lost steps, above the one that is evaluated, do not count yet.
    assert evaluations_since(Best(10, 0.5), 20, [10, 20, 30, 40]) == 1
    assert evaluations_since(Best(30, 0.5), 20, [10, 20, 30]) == 0


def test_the_used_model_is_one_of_the_two_without_a_copy(tmp_path):
    last, used = tmp_path / "judge-last", tmp_path / "judge"
    _model(last, 9, 0.1)
    (tmp_path / "judge.partial").mkdir()  # of a start that was killed
    link_model(str(last), str(used))
    link_model(str(last), str(used))
    assert os.path.samefile(used / "model.safetensors", last / "model.safetensors")
    link_model(_model(tmp_path / "judge-best", 4, 0.8), str(used))
    assert (used / "model.safetensors").read_text() == "4"
    assert (last / "model.safetensors").read_text() == "9"


@pytest.mark.parametrize("value", [None, "0.5", float("nan")])
def test_what_is_no_score_makes_no_best(tmp_path, value):
    directory = tmp_path / "judge-best"
    _model(directory, 3, 0.0)
    (directory / EVALUATION_FILE).write_text(json.dumps({"version": 3, KEY: value}))
    assert best_of(str(directory), KEY) is None
