"""A Hugging Face Hub cache of the real layout, made of folders: names of the Hub without a network.

Set HF_HOME to the folder it was made in (and HF_HUB_OFFLINE=1), for processes that are started, or
`use_cache` for this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import pytest

SHIPPED = (
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct",
)
"""Models on the Hub that configs/*.yaml name, but for the one that lives behind a URL."""


def add_to_cache(
    home: Path,
    name: str,
    folder: Path,
    *,
    revision: str = "main",
    without: Collection[str] = (),
    kind: str = "model",
) -> str:
    """Put a folder's files into the cache of ``home`` under a name; returns the commit.

    ``without``: files that the commit has and that were not fetched. ``kind``: model or dataset.
    """
    repository = home / "hub" / f"{kind}s--{name.replace('/', '--')}"
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    content = "".join(f"{path.relative_to(folder)} {digests[path]}\n" for path in files)
    commit = hashlib.sha1(f"{name}\n{content}".encode()).hexdigest()
    for path, digest in digests.items():
        relative = path.relative_to(folder)
        if str(relative) in without:
            continue
        blob = repository / "blobs" / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = repository / "snapshots" / commit / relative
        link.parent.mkdir(parents=True, exist_ok=True)
        ups = "../" * (len(relative.parts) + 1)
        link.unlink(missing_ok=True)
        link.symlink_to(f"{ups}blobs/{digest}")
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return commit


def shipped_models(home: Path, folder: Path) -> dict[str, str]:
    """Put the model of a folder into the cache under every name of `SHIPPED`; their commits."""
    return {name: add_to_cache(home, name, folder) for name in SHIPPED}


def use_cache(patch: pytest.MonkeyPatch, home: Path, *, offline: bool = True) -> None:
    """Have this process, and those it starts, read the cache of ``home``."""
    from huggingface_hub import constants

    patch.setenv("HF_HOME", str(home))
    patch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    patch.delenv("HF_HUB_CACHE", raising=False)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
