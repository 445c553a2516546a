"""Data sets by name where the Hub is not heard: what `hf download --repo-type dataset` has left."""

from __future__ import annotations

from pathlib import Path

from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.folders import PATIENCE_S


def why_not_asked(name: str) -> str:
    """Why the Hub will not answer about a data set; empty where it does, whatever it says."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if cache.is_offline() or datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().dataset_info(name, timeout=PATIENCE_S)
    except (HfHubHTTPError, ValueError):
        return ""  # it said no, or that is no name: the library that loads it has words for that
    except Exception as error:  # the HTTP client has errors of its own
        return f"the Hub was not heard ({type(error).__name__}: {error})"
    return ""


def dataset_snapshot(name: str) -> Path | None:
    """The folder of the newest files of a data set in the Hub cache; None where there is none."""
    repository = cache.repository(name, "dataset")
    file = repository / "refs" / "main"
    folder = repository / "snapshots" / file.read_text().strip() if file.is_file() else None
    return folder if folder is not None and folder.is_dir() else None
