"""An arm of every kind, small, through the command; what is finished is never done again."""

import json
import shutil
from pathlib import Path

import pytest

from stepwiser.run.store import RunStore
from tests.support.commands import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ARMS = (
    "ablate.arms={full: {train.method: discriminative}, bare: {train.reward: verdict_only}, "
    "outcome: {train.reward: outcome, train.warm_start: true}, rejection: {train.method: rs_ft}}"
)
ARM_NAMES = ("full", "bare", "outcome", "rejection")
SMALLER = (
    "ablate.seeds=1",
    "data.limit=32",
    "engine.count=1",
    "learner.workers=1",
    "segment.sft.steps=40",
    "train.steps=1",
    "rejection.rounds=1",
    "rejection.prompts=32",
    "rejection.sft.epochs=1",
    ARMS,
)


def _stamps(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_arms_share_their_labels_and_a_second_start_goes_on(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    chosen = (*SMALLER, f"run_dir={folder}")
    run("ablate", *chosen, f"--out={out}")
    seed = folder / "seed-0"
    full, bare = RunStore(seed / "full"), RunStore(seed / "bare")
    ours, theirs = (store.read_table("judge_prompts", "label") for store in (full, bare))
    assert ours.equals(theirs) and ours.num_rows > 0
    assert (full.model_dir("judge-discriminative") / "config.json").is_file()
    assert not full.model_dir("judge").exists(), "this arm trains nothing else"
    (row,) = [row for row in bare.read_curve("judge") if row["kind"] == "train"]
    assert row["response_length"] < 6, "asked for a verdict it gives one, and no reasons"
    (row,) = [r for r in RunStore(seed / "outcome").read_curve("judge") if r["kind"] == "train"]
    assert 0 < row["reward"] < 1 and row["response_length"] > 6, "solutions are judged by reasoning"
    warm = json.loads((seed / "outcome" / "metrics" / "train.json").read_text())
    (began,) = warm["warm_start"]
    assert warm["no_verdict_first"] == began["share_no_verdict"] and began["trained_tokens"] > 0
    start = RunStore(seed / "outcome").model_dir("judge-warm")
    assert (start / "config.json").is_file() and row["logprob_gap"] < 0.1, "GRPO began there"
    rejection = json.loads((seed / "rejection" / "metrics" / "train.json").read_text())
    (sampled,) = rejection["rounds"]
    assert 0 < sampled["reward"] < 1 and sampled["trained_tokens"] > 0
    assert not [r for r in RunStore(seed / "rejection").read_curve("judge") if r["kind"] == "train"]
    data = json.loads((out / "ablation.json").read_text())
    assert data == json.loads((folder / "reports" / "ablation.json").read_text())
    assert set(data["figures"]["f1"]) == {*ARM_NAMES, "start"}
    gap = data["figures"]["f1"]["bare"]["difference"]
    scores = {arm: data["figures"]["f1"][arm]["mean"] for arm in ("full", "bare")}
    assert gap["mean"] == pytest.approx(scores["bare"] - scores["full"]) and gap["low"] is None

    # As if killed before it was scored: its training and the other arm stay as they are.
    (seed / "bare" / "metrics" / "ablation.json").unlink()
    shutil.rmtree(folder / "reports")
    before = _stamps(seed)
    run("ablate", *chosen)
    changed = {name for name, stamp in _stamps(seed).items() if before.get(name) != stamp}
    assert {"bare/metrics/ablation.json", "bare/judgements/judge.parquet"} <= changed
    kept = [name for name in before if name.startswith("full/") or "/models/" in name]
    assert kept and not changed.intersection(kept)
    assert (folder / "reports" / "ablation.md").is_file()

    output = run("ablate", *chosen)
    assert "seed 0: already done, kept" in output and "starting" not in output
    assert "train.steps: 1 -> 2" in run("ablate", *chosen, "train.steps=2", code=2)
