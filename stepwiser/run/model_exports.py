"""Plain models of a training: the last one, the best one, and the one that is used.

`models/judge-last` and `models/judge-best` are made while training goes on. `models/judge`, which
the later stages read, is one of the two under another name: its files are hard links, so it takes
no room of its own where the file system has them.

A place is a path, where a model is a folder that is renamed, or an address, where it is a folder of
`stepwiser.storage.trees`. Judges that wait to be evaluated lie below `candidates_of` the best one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwiser.config.addresses import object_address
from stepwiser.storage.folder import writing
from stepwiser.storage.places import open_storage, working_copy
from stepwiser.storage.trees import LIST, add_file, adopt, bring, clear, publish, read_version

EVALUATION_FILE = "evaluation.json"
"""In an evaluated directory: the scores of these very weights, and their version."""

ADAPTER_DIR = "adapter"
"""In the directory of a model that was trained with LoRA: the adapter alone, in peft's layout."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_KEY = "lora"
"""In the header of an adapter's safetensors: what `ADAPTER_CONFIG` holds."""

_CANDIDATES = "candidates"


@dataclass(frozen=True)
class Best:
    """The best judge so far."""

    version: int
    """Steps trained."""
    score: float


def best_of(place: str, key: str) -> Best | None:
    """Of the place that the best judge is kept at; None before there is one."""
    figures = read_evaluation(place)
    if figures is None or not is_score(figures.get(key)):
        return None
    return Best(int(figures["version"]), float(figures[key]))


def read_evaluation(place: str) -> dict[str, Any] | None:
    """The scores of an evaluated model; None where there is none, or it was not evaluated."""
    try:
        return dict(json.loads(read_model_file(place, EVALUATION_FILE)))
    except FileNotFoundError:
        return None


def adapter_of(directory: str | Path) -> Path | None:
    """The folder of the adapter that a directory's weights were merged with."""
    folder = Path(directory) / ADAPTER_DIR
    return folder if (folder / ADAPTER_WEIGHTS).is_file() else None


def is_model(place: str) -> bool:
    """Whether a model lies at a path or an address, whole."""
    name = LIST if object_address(place) else "config.json"
    return open_storage("model", place).exists(name)


def is_score(value: Any) -> bool:
    """Whether a figure can be compared: a set without one class has no balanced accuracy."""
    return isinstance(value, int | float) and not math.isnan(value)


def evaluations_since(best: Best | None, version: int, versions: Iterable[int]) -> int:
    """How many evaluations up to ``version`` have come after the best one.

    Those above ``version`` are of steps that were lost with a crash and will be trained again.
    """
    first = best.version if best is not None else 0
    return len({v for v in versions if first < v <= version})


def candidates_of(best: str) -> str:
    """Where judges wait that may become the one at ``best``."""
    if object_address(best):
        return f"{best}/{_CANDIDATES}"
    return f"{best.removesuffix('-best')}-{_CANDIDATES}"


def keep_if_best(candidate: str, best: str, key: str) -> bool:
    """Make an evaluated candidate the best judge, or take it away; whether it was the best.

    The earlier one stays where both have the same score. May be repeated after a crash.
    """
    mine, before = best_of(candidate, key), best_of(best, key)
    chosen = mine is not None and (before is None or before.score < mine.score)
    if not object_address(best):
        if chosen:
            _replace(Path(candidate), Path(best))
        else:
            shutil.rmtree(candidate, ignore_errors=True)
        return chosen
    storage, below = open_storage("model", best), candidate.removeprefix(f"{best}/")
    if chosen:
        adopt(storage, below)
    else:
        clear(storage, below)
    return chosen


def drop_candidates(best: str) -> None:
    """Take away all judges that wait to be evaluated."""
    if object_address(best):
        clear(open_storage("model", best), _CANDIDATES)
    else:
        shutil.rmtree(candidates_of(best), ignore_errors=True)


def folder_to_fill(place: str) -> Path:
    """The folder in which this machine makes a model that is to lie at a path or an address."""
    return working_copy(place) / "made" if object_address(place) else Path(place)


def publish_model(folder: Path, place: str) -> None:
    """Put what was made in `folder_to_fill` of an address there, whole; a path has it already."""
    if object_address(place):
        publish(folder, open_storage("model", place))


def read_model_file(place: str, name: str) -> bytes:
    """A small file of a model at a path or an address; raises FileNotFoundError."""
    storage = open_storage("model", place)
    if not object_address(place):
        return storage.read(name)
    version = read_version(storage)
    if version is None or name not in version.files:
        raise FileNotFoundError(f"{place} has no {name}")
    return storage.read(f"{version.name}/{name}")


def has_model_file(place: str, name: str) -> bool:
    """Whether a model has been made and has this file."""
    storage = open_storage("model", place)
    if not object_address(place):
        return storage.exists(name)
    version = read_version(storage)
    return version is not None and name in version.files


def write_model_file(place: str, name: str, text: str) -> None:
    """Add a small file to a model, or replace it; raises FileNotFoundError where there is none."""
    if not object_address(place):
        if not Path(place).is_dir():
            raise FileNotFoundError(f"{place} is not there to put {name} into")
        with writing(Path(place) / name) as temporary:
            temporary.write_text(text, "utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="stepwiser-") as folder:
        file = Path(folder) / name
        file.write_text(text, "utf-8")
        add_file(open_storage("model", place), name, file)


def link_model(source: str, target: str) -> None:
    """Give a model a second name; it appears whole, in place of an earlier one."""
    if object_address(target):
        folder = bring(open_storage("model", source), working_copy(source))
        if folder is None:
            raise FileNotFoundError(f"{source} is not there to be called {target}")
        publish_model(folder, target)
        return
    partial = Path(f"{target}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    _replace(partial, Path(target))


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
