"""What a person is told about a model that cannot be had, and what to do."""

from __future__ import annotations

import socket

from stepwiser.errors import UserError
from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.reference import HubModel


def command(model: HubModel) -> str:
    """What fetches a model into the cache of the machine on which it is typed."""
    revision = "" if model.revision == "main" else f" --revision {model.revision}"
    return f"hf download {model.name}{revision}"


def absent(model: HubModel, missing: list[str] | None = None) -> UserError:
    """A model, or some of its files, that the cache lacks while nobody may be asked."""
    lacks = f"lacks {', '.join(missing[:5])}" if missing else "is not there"
    words = (
        f"model {model} {lacks} in the Hub cache of {socket.gethostname()} ({cache.cache_folder()})"
        ", and HF_HUB_OFFLINE keeps it from being fetched: run `"
        f"{command(model)}` on that machine with network, or share a cache that has it (HF_HOME)"
    )
    if missing is None:
        words += _others(model)
    return UserError(words)


def _others(model: HubModel) -> str:
    commits = cache.cached_commits(model.name)
    if commits:
        known = ", ".join(f"{model.name}@{commit}" for commit in commits[:3])
        return f"; there is {known}, which can be named so"
    nearest = cache.nearest_cached(model.name)
    return f"; what is cached and called alike: {', '.join(nearest)}" if nearest else ""


def refused(model: HubModel, error: Exception) -> UserError:
    """What the Hub, or the way to it, answered."""
    from huggingface_hub import errors

    where = f"model {model} (asked from {socket.gethostname()})"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{where} is gated: ask for access on https://huggingface.co/{model.name}, then log in "
            "with `hf auth login` or set HF_TOKEN, on every machine that fetches it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{where}: the Hub has the model but not the revision {model.revision}: leave it out "
            "for its main branch, or take a branch, tag or commit that "
            f"https://huggingface.co/{model.name}/commits/main lists"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{where} is neither a folder here nor a model on the Hub, or it is private: look at "
            "the spelling; for a private one log in with `hf auth login` or set HF_TOKEN"
            f"{_others(model)}"
        )
    return UserError(
        f"{where} is not in the Hub cache ({cache.cache_folder()}) and cannot be fetched: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; on a machine "
        f"with network run `{command(model)}` and copy or share its cache (HF_HOME); "
        f"HF_HUB_OFFLINE=1 spares the question{_others(model)}"
    )
