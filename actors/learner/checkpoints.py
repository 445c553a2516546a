"""What lies in a checkpoint beside DeepSpeed's own files, and when it counts as whole.

Every rank writes its share into a folder of its own; Ray Train merges them. Each rank lists its
files with their sizes, so a copy that a kill cut short is never taken for a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwiser.errors import UserError

STATE_FILE = "state.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints of a run."""


def seal(directory: Path, rank: int) -> None:
    """List what this rank has written; the last thing it does."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
    _files_of(directory, rank).write_text(json.dumps(sizes))


def missing(directory: Path) -> str | None:
    """What a checkpoint lacks, in words; None where it is whole."""
    state = _parsed(directory / STATE_FILE)
    if state is None:
        return f"its {STATE_FILE} is not there or cut short"
    # A checkpoint between two fine-tunings holds no model, so no rank has a share in it.
    for rank in range(int(state.get("world_size", 0))):
        sizes = _parsed(_files_of(directory, rank))
        if sizes is None:
            return f"the share of rank {rank} is not there"
        for name, size in sizes.items():
            path = directory / name
            if not path.is_file() or path.stat().st_size != size:
                return f"{name} of rank {rank} is not there or cut short"
    return None


def read_state(directory: Path) -> dict[str, Any]:
    """What `DeepSpeedWorker.save_checkpoint` was given, with world size, stage and precision.

    Raises UserError where the checkpoint is not whole.
    """
    if lack := missing(directory):
        raise UserError(
            f"the checkpoint {directory} is not whole: {lack}; delete it, and the run goes on from "
            "the one before it"
        )
    return dict(json.loads((directory / STATE_FILE).read_text()))


def newest_whole(run: Path) -> Path | None:
    """The last whole checkpoint of a Ray Train run, by the files alone; names begin with times."""
    whole = [path.parent for path in run.glob(f"*/{STATE_FILE}") if missing(path.parent) is None]
    return max(whole, default=None)


def mend(run: Path) -> Path | None:
    """Make a run readable for Ray Train, which writes its list of checkpoints in place.

    A kill in the middle of that leaves a broken list, by which no start would succeed: it is taken
    away. Returns the checkpoint to go on from where there is no list, so that Ray Train does not
    know of it: that stays so over further kills, until it has listed the next one.
    """
    snapshot = run / SNAPSHOT
    if _parsed(snapshot) is not None:
        return None
    snapshot.unlink(missing_ok=True)
    return newest_whole(run)


def save_random_state(directory: Path, rank: int) -> None:
    """Of Python, NumPy, torch and CUDA. A model with dropout draws from them; nothing else does."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    torch.save(state, _random_of(directory, rank))


def load_random_state(directory: Path, rank: int) -> None:
    """Go on as this rank did; one that was not there then keeps the state it started with."""
    file = _random_of(directory, rank)
    if not file.is_file():
        return
    state = torch.load(file, weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def to_universal(source: Path, target: Path) -> None:
    """DeepSpeed's layout of one file a weight, which any number of ranks can load.

    Needs the optimizer's state of the whole model on disk, and one rank's share in memory.
    """
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        # One after the other: children of a process with CUDA and threads would not be safe.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # ZeRO-2 asks for a note that only models with tensor parallelism have.
        inject_missing_state=True,
    )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        ds_to_universal.main(options)


def first_of_each(keys: Iterable[str]) -> list[int]:
    """Positions at which a key comes for the first time: one rank of each machine."""
    seen: dict[str, int] = {}
    for position, key in enumerate(keys):
        seen.setdefault(key, position)
    return sorted(seen.values())


def _files_of(directory: Path, rank: int) -> Path:
    return directory / f"files-{rank}.json"


def _random_of(directory: Path, rank: int) -> Path:
    return directory / f"random-{rank}.pt"


def _parsed(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None
