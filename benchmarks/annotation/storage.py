"""Annotation into a bucket beside annotation into a folder of a local disk.

Engines, problems and labelers are the same, and the two kinds of place take turns. The bucket is
moto's server on this machine, so it has no distance, and the server and the proxy before it share
the cores with the engine: what a put costs there is in the ratio, what a network adds is not.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import CONFIG
from benchmarks.object_store import throttling_bucket
from pipelines.session.session import Session
from pipelines.stages import annotate
from stepwiser.config import RunConfig, load_config
from stepwiser.run.model_exports import publish_model
from stepwiser.run.store import RunStore

OVERRIDES = ("engine.count=1", "annotate.problems_per_unit=4", "tracker=none")


def measure_storage(out: Path, policy: Path, repeats: int, problems: int) -> dict[str, Any]:
    """`bucket_vs_folder`: median of the ratios of their tokens/s, by repeat; `rows` has these.

    ``policy``: directory of a chunk-tuned model.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows: list[dict[str, float]] = []
    with throttling_bucket(out / "s3.log", refused=0.0) as address:
        os.environ["XDG_CACHE_HOME"] = str(out / "cache")  # which the block puts back
        places = {"folder": str(out), "bucket": address}
        configs = [
            {name: _config(f"{place}/run-{turn}", problems) for name, place in places.items()}
            for turn in range(repeats + 1)
        ]
        with Session(configs[0]["folder"]) as session:
            for turn, both in enumerate(configs):
                # The first pair warms the engine up.
                order: Sequence[str] = sorted(both, reverse=turn % 2 == 1)
                rates = {name: _rate(session, both[name], policy) for name in order}
                if turn:
                    rows.append(rates)
    ratios = [row["bucket"] / row["folder"] for row in rows]
    return {"bucket_vs_folder": statistics.median(ratios), "rows": rows}


def _config(run: str, problems: int) -> RunConfig:
    return load_config(CONFIG, [f"run_dir={run}", f"data.limit={problems}", *OVERRIDES])


def _rate(session: Session, config: RunConfig, policy: Path) -> float:
    """Tokens/s of a run from its first unit to its last row, its engine being up."""
    store = RunStore(config.run_dir)
    if store.remote:
        publish_model(policy, store.model("policy"))
    else:
        shutil.copytree(policy, store.model_dir("policy"))
    session.turn(config)
    session.start(["annotate"])
    session.pool(session.policy_dir())
    began = time.monotonic()
    counts = annotate.run(session)["counts"]
    seconds = time.monotonic() - began
    return float(counts["response_tokens"] + counts["rollout_tokens"]) / seconds
