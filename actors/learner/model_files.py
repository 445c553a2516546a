"""A trained model as a folder that others load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from stepwiser.prompting.hub.files import FOREIGN, WEIGHTS


def write_model(
    model: Any,
    state: dict[str, Tensor],
    source: Path,
    target: Path,
    complete: Callable[[Path], None],
) -> None:
    """Write a model with these weights; it appears whole, or not at all.

    Args:
        source: the folder of the model it came from, whose tokenizer and licence it keeps.
        complete: adds to the folder before it has its name.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=state)
    for file in source.iterdir():
        # Tokenizer, chat template, licence: all but weights and what save_pretrained has written.
        weights = ".index." in file.name or any(map(file.match, (*WEIGHTS, *FOREIGN)))
        if file.is_file() and not weights and not (partial / file.name).exists():
            shutil.copy2(file, partial / file.name)
    complete(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
