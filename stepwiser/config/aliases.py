"""Keys that have a new name: the old one works for one more version, with a warning that names the
new one. Take an entry out with the version after the one that is named beside it."""

from __future__ import annotations

import warnings
from typing import Any

from stepwiser.errors import UserError

RENAMED = {
    "segment.attempts": "segment.segmentations",  # 0.2
    "solve.max_attempts": "solve.samples_per_chunk",  # 0.2
    "train.max_draws": "train.max_sampling_rounds",  # 0.2
    "train.replace_flat_groups": "train.dynamic_sampling",  # 0.2
}
"""Old dotted keys to new ones, with the first version that has the new one."""


class RenamedKeyWarning(FutureWarning):
    """A configuration says a key by its old name."""


def current_key(key: str, where: str) -> str:
    """The present name of a dotted key; warns where it has another one than was written."""
    new = RENAMED.get(key)
    if new is None:
        return key
    warnings.warn(
        f"{where}: {key} is called {new} now; the old name goes with the next version",
        RenamedKeyWarning,
        stacklevel=3,
    )
    return new


def rename_keys(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """A configuration with present names, as nested mappings; ``raw`` stays as it is.

    Raises UserError where a key is there by both of its names.
    """
    renamed = dict(raw)
    for old in RENAMED:
        section, _, name = old.partition(".")
        settings = renamed.get(section)
        if not isinstance(settings, dict) or name not in settings:
            continue
        new = current_key(old, where)
        leaf = new.partition(".")[2]
        if leaf in settings:
            raise UserError(f"{where}: {old} and {new} are two names of one setting: keep {new}")
        # In its place: the order of a file's keys says something to its reader.
        renamed[section] = {leaf if k == name else k: v for k, v in settings.items()}
    return renamed
