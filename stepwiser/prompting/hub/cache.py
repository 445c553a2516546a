"""What this machine's Hub cache holds, read from its folders; asks nobody.

The layout is the Hub's own: `models--org--name/{refs/<branch>,snapshots/<commit>/<file>}`, files
being links into `blobs/`. A link whose blob is not there is a file that was not fetched.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from stepwiser.prompting.hub.reference import HubModel

_PREFIX = "models--"


def is_offline() -> bool:
    """Whether nobody is to be asked (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """The Hub cache of this process (`HF_HUB_CACHE`, else `hub` in `HF_HOME`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository(name: str, kind: str = "model") -> Path:
    """Where the cache has a model or a data set, if it has it."""
    return cache_folder() / f"{kind}s--{name.replace('/', '--')}"


def cached_commit(model: HubModel) -> str | None:
    """The commit that the cache knows a revision by."""
    if model.commit is not None:
        return model.commit if snapshot(model) is not None else None
    file = repository(model.name) / "refs" / model.revision
    return file.read_text().strip() if file.is_file() else None


def cached_commits(name: str) -> list[str]:
    """Commits of a model of which there are files."""
    folder = repository(name) / "snapshots"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def snapshot(model: HubModel) -> Path | None:
    """The folder of one commit, whole or not; None where there is none."""
    folder = repository(model.name) / "snapshots" / model.revision
    return folder if model.commit is not None and folder.is_dir() else None


def nearest_cached(name: str) -> list[str]:
    """Cached models that are called most like this one; at most three."""
    folder = cache_folder()
    names = [
        path.name.removeprefix(_PREFIX).replace("--", "/", 1)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.startswith(_PREFIX)
    ]
    return difflib.get_close_matches(name, sorted({*names} - {name}), n=3, cutoff=0.5)
