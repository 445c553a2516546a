"""A rank without a GPU computes with the cores that engines leave it."""

from __future__ import annotations

import pytest

from pipelines.session.engine_options import engine_threads
from pipelines.training.learner_options import learner_threads
from stepwiser.config import load_config
from tests.support.paths import ROOT

EMBEDDED = ROOT / "configs" / "embedded.yaml"


@pytest.mark.parametrize(
    ("overrides", "learner", "engine"),
    [
        ([], 4, 4),
        (["learner.workers=1", "engine.count=1"], 8, 8),
        (["learner.cpus=3"], 3, 4),
        (["train.staleness=1"], 1, 3),  # two ranks have a core each, two engines share six
        (["train.staleness=1", "learner.cpus=2"], 2, 2),
        (["train.live=true"], 1, 2),  # two engines more that label meanwhile
        (["learner.gpus=1"], 1, 4),
        (["cluster.address=auto"], 1, 1),
    ],
)
def test_threads_of_eight_cores(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], learner: int, engine: int
) -> None:
    for name in ("OMP_NUM_THREADS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    config = load_config(EMBEDDED, ["engine.cpus=null", *overrides])
    assert learner_threads(config, "train") == learner
    assert engine_threads(config, "train", config.engine.count) == engine


def test_the_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    config = load_config(EMBEDDED, ["engine.cpus=null"])
    assert learner_threads(config, "train") == engine_threads(config, "train", 2) == 5
    beside = load_config(EMBEDDED, ["engine.cpus=null", "train.staleness=1"])
    assert learner_threads(beside, "train") == 1
    assert learner_threads(beside, "finetune") == 5
