"""Data sets on the Hub: which commit a name stands for, and what of it this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.folders import PATIENCE_S
from stepwiser.prompting.hub.reference import HubModel


@dataclass(frozen=True)
class HubDataset:
    """What there is to read of a data set."""

    commit: str | None
    """None where nobody says: the library that loads it has words for why, or a cache of its
    own."""
    folder: Path | None = None
    """What `hf download --repo-type dataset` has left, where the Hub does not answer."""
    unheard: str = ""
    """Why it does not; empty where it does, whatever it says."""


def find_dataset(asked: HubModel) -> HubDataset:
    """Ask the Hub what a revision stands for; where it is not heard, or offline, the cache."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    unheard = ""
    if cache.is_offline() or datasets.config.HF_HUB_OFFLINE:
        unheard = "HF_HUB_OFFLINE is set"
    else:
        try:
            info = HfApi().dataset_info(asked.name, revision=asked.revision, timeout=PATIENCE_S)
            return HubDataset(info.sha)
        except (HfHubHTTPError, ValueError):
            return HubDataset(None)  # it said no, or that is no name
        except Exception as error:  # the HTTP client has errors of its own
            unheard = f"the Hub was not heard ({type(error).__name__}: {error})"
    repository, commit = cache.repository(asked.name, "dataset"), asked.commit
    if commit is None:
        file = repository / "refs" / asked.revision
        commit = file.read_text().strip() if file.is_file() else None
    folder = repository / "snapshots" / (commit or "none")
    if not folder.is_dir():
        return HubDataset(asked.commit, None, unheard)
    return HubDataset(commit, folder, unheard)
