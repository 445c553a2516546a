"""Learners on nodes that stay, engines on what they leave; hand-computed."""

from __future__ import annotations

from stepwiser.run.resource_plan import MARKET_LABEL, SPOT, Need, ResourcePlan

TRAIN = ResourcePlan("train", (Need("engine", 8, 1, 1.0), Need("learner", 8, 1, 1.0, spot=False)))
GPUS_24 = {"CPU": 288.0, "GPU": 24.0}


def test_both_on_nodes_that_stay_need_no_labels() -> None:
    staying = {"CPU": 192.0, "GPU": 16.0}
    assert TRAIN.shortfalls(GPUS_24, staying) == []
    assert TRAIN.engine_labels(staying) is None
    assert TRAIN.shortfalls(GPUS_24) == []


def test_engines_leave_the_nodes_that_stay_to_the_learners() -> None:
    staying = {"CPU": 96.0, "GPU": 8.0}
    assert TRAIN.shortfalls(GPUS_24, staying) == []
    assert TRAIN.engine_labels(staying) == {MARKET_LABEL: SPOT}


def test_learners_without_room_on_nodes_that_stay_are_said() -> None:
    (words,) = TRAIN.shortfalls(GPUS_24, {"CPU": 96.0, "GPU": 4.0})
    assert "learners of train need 8 GPU on nodes that stay, but only 4" in words
    assert "learner.spot=true" in words


def test_engines_that_would_need_both_kinds_are_said() -> None:
    (words,) = TRAIN.shortfalls({"CPU": 288.0, "GPU": 16.0}, {"CPU": 192.0, "GPU": 12.0})
    assert "engines of train need 8 GPU on spot nodes" in words and "only 4 are there" in words


def test_too_little_of_all_is_said_once() -> None:
    (words,) = TRAIN.shortfalls({"CPU": 288.0, "GPU": 12.0}, {"CPU": 96.0, "GPU": 4.0})
    assert words.endswith("only 12 are there: 4 short")


def test_learners_that_may_be_anywhere_ask_for_nothing() -> None:
    anywhere = ResourcePlan("train", (*TRAIN.needs[:1], Need("learner", 8, 1, 1.0)))
    assert anywhere.shortfalls(GPUS_24, {"CPU": 0.0, "GPU": 0.0}) == []
    assert anywhere.engine_labels({"CPU": 0.0, "GPU": 0.0}) is None
