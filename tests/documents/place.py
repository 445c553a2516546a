"""The files that commands of the documents name, small: data, runs, a model, a verifier."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from stepwiser.config import load_config
from stepwiser.config.annotation import Shard
from stepwiser.run.store import RunStore
from stepwiser.run.units import UnitLog, write_plan
from stepwiser.tasks import load_base_model_dir
from tests.stepwiser.run.annotated_run import COUNTS, trajectory, values, write_unit
from tests.stepwiser.run.test_merge import write_shard
from tests.support.paths import ROOT

LINKS = ("configs", "cluster", "requirements", "pyproject.toml")
GSM8K = [
    {"question": f"Ann has {n} pens and buys 2. How many?", "answer": f"<<{n}+2>>\n#### {n + 2}"}
    for n in range(3, 9)
]
ITEMS = [
    {
        "id": f"own-{n}",
        "problem": f"Ann has {n} pens and buys 2. How many?",
        "steps": [f"She has {n} and buys 2.", f"That is {n} + 2 = {n + 2 + wrong}."],
        "label": 1 if wrong else -1,
        "final_answer_correct": not wrong,
    }
    for n in range(3, 7)
    for wrong in (0, 1)
]
REASONS = ("nested", "unbalanced", "missing closing tag")
PROCESSBENCH = ("gsm8k", "math", "olympiadbench", "omnimath")


def furnish(place: Path) -> None:
    """Write everything that a command of the documents reads."""
    for name in LINKS:
        (place / name).symlink_to(ROOT / name)
    model = load_base_model_dir()
    for name in ("model", "runs/models/smollm2"):
        shutil.copytree(model, place / name)
    _write_data(place)
    (place / "run.yaml").write_text((ROOT / "configs" / "embedded.yaml").read_text())
    (place / "FILE").write_text((ROOT / "configs" / "ablate-embedded.yaml").read_text())
    (place / "mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for i in range(2):
        write_shard(place / f"runs/part-{i}", Shard(i, 2))
    _write_runs(place)


def _write_data(place: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in GSM8K)
    for name in ("train.jsonl", "test.jsonl", "gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(rows)
    (place / "solutions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    (place / "mine.csv").write_text("Question,Answer\nWhat is 1 + 1?,2\n")
    (place / "processbench").mkdir()
    for name in PROCESSBENCH:
        (place / "processbench" / f"{name}.json").write_text(json.dumps(ITEMS))


def _write_runs(place: Path) -> None:
    """The run of a quickstart (of version 0.1), one of two shards, and a pilot's."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs-0.1.tar.xz") as archive:
        archive.extractall(place / "runs" / "old", filter="data")
    run = place / "runs" / "embedded"
    (place / "runs" / "old" / "quickstart").rename(run)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("@RUN@", str(run)))
    (place / "shared").mkdir(exist_ok=True)
    (place / "shared" / "begun").symlink_to(run)
    pilot = RunStore(place / "runs" / "pilot").open(load_config(None, ["name=pilot"]))
    pilot.write_metrics("annotate", {"counts": COUNTS, "rollouts_per_prefix": 4})
    config = load_config(ROOT / "configs" / "embedded.yaml", ["run_dir=runs/two-shards"])
    store = RunStore(place / "runs" / "two-shards").open(config)
    _write_units(store)


def _write_units(store: RunStore) -> None:
    names = [f"u{i}" for i in range(4)]
    write_plan(store, names, 8)
    for index in range(2):
        shard = Shard(index, 2)
        log = UnitLog(store, shard)
        log.start(0.0, 2)
        for name in names[index::2]:
            row = trajectory(f"t-{name}")
            write_unit(store, name, [(row, values(row))])
            counts = COUNTS | {f"malformed: {why}": 1 for why in REASONS}
            log.finished(
                name, counts | {"labelled: rel_effective": 3, "positive: rel_effective": 2}
            )
        log.end()
