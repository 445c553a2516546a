"""Plain model directories of a training: the last one, the best one, and the one that is used.

`models/judge-last` and `models/judge-best` are made while training goes on. `models/judge`, which
the later stages read, is one of the two under another name: its files are hard links, so it takes
no room of its own where the file system has them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwiser.config.addresses import object_address
from stepwiser.storage.places import open_storage, working_copy
from stepwiser.storage.trees import publish, read_version

EVALUATION_FILE = "evaluation.json"
"""In an evaluated directory: the scores of these very weights, and their version."""

ADAPTER_DIR = "adapter"
"""In the directory of a model that was trained with LoRA: the adapter alone, in peft's layout."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_KEY = "lora"
"""In the header of an adapter's safetensors: what `ADAPTER_CONFIG` holds."""


@dataclass(frozen=True)
class Best:
    """The best judge so far."""

    version: int
    """Steps trained."""
    score: float


def best_of(directory: Path, key: str) -> Best | None:
    """Of the directory that the best judge is kept in; None before there is one."""
    figures = read_evaluation(directory)
    if figures is None or not is_score(figures.get(key)):
        return None
    return Best(int(figures["version"]), float(figures[key]))


def read_evaluation(directory: Path) -> dict[str, Any] | None:
    """The scores of an evaluated directory."""
    file = directory / EVALUATION_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else None


def adapter_of(directory: str | Path) -> Path | None:
    """The folder of the adapter that a directory's weights were merged with."""
    folder = Path(directory) / ADAPTER_DIR
    return folder if (folder / ADAPTER_WEIGHTS).is_file() else None


def is_score(value: Any) -> bool:
    """Whether a figure can be compared: a set without one class has no balanced accuracy."""
    return isinstance(value, int | float) and not math.isnan(value)


def evaluations_since(best: Best | None, version: int, versions: Iterable[int]) -> int:
    """How many evaluations up to ``version`` have come after the best one.

    Those above ``version`` are of steps that were lost with a crash and will be trained again.
    """
    first = best.version if best is not None else 0
    return len({v for v in versions if first < v <= version})


def keep_if_best(candidate: Path, best_dir: Path, key: str) -> bool:
    """Make an evaluated directory the best one, or take it away; whether it was the best.

    The earlier one stays where both have the same score. May be repeated after a crash.
    """
    mine, best = best_of(candidate, key), best_of(best_dir, key)
    if mine is None or (best is not None and best.score >= mine.score):
        shutil.rmtree(candidate, ignore_errors=True)
        return False
    _replace(candidate, best_dir)
    return True


def folder_to_fill(place: str) -> Path:
    """The folder in which this machine makes a model that is to lie at a path or an address."""
    return working_copy(place) / "made" if object_address(place) else Path(place)


def publish_model(folder: Path, place: str) -> None:
    """Put what was made in `folder_to_fill` of an address there, whole; a path has it already."""
    if object_address(place):
        publish(folder, open_storage("model", place))


def read_model_file(place: str, name: str) -> bytes:
    """A small file of a model at a path or an address."""
    storage = open_storage("model", place)
    version = read_version(storage) if object_address(place) else None
    return storage.read(f"{version.name}/{name}" if version else name)


def link_model(source: Path, target: Path) -> None:
    """Give a model directory a second name; it appears whole, in place of an earlier one."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    _replace(partial, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _replace(source: Path, target: Path) -> None:
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
