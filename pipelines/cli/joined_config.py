"""The configuration of a start that joins a run: the run's, save what each cluster has its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepwiser.config import RunConfig
from stepwiser.config.loading import load_config, override_config
from stepwiser.errors import UserError
from stepwiser.run.store import CONFIG, RunStore, changes_between


def joined_config(run: str, file: Path | None, overrides: Sequence[str]) -> RunConfig:
    """What the run was made by, with these `key=value`.

    ``file``: a scenario to take what may differ from, instead of the run's.

    Raises UserError where there is no run, and, naming each key, where another value than the
    run's would decide what is computed.
    """
    if any(one.startswith("run_dir=") for one in overrides):
        raise UserError(f"--join {run} names the run already: leave run_dir= out")
    store = RunStore(run)
    made = store.config()
    here = [*overrides, f"run_dir={run}"]
    if file is None:
        raw = made.model_dump(mode="json")
        # Another cluster's address, share and size.
        del raw["cluster"]
        config = override_config(raw, store.called(CONFIG), here)
    else:
        config = load_config(file, here)
    if changes := changes_between(made, config, "->"):
        raise UserError(
            f"--join {run}: the run has other values:\n{changes}\nleave these out; what may differ "
            "from cluster to cluster is cluster.*, engine.* and how many engines there are"
        )
    return config
