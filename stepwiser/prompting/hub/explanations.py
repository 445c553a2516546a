"""What a person is told about a model that cannot be had, and what to do."""

from __future__ import annotations

import socket

from stepwiser.errors import UserError
from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.reference import MAIN, HubModel


def command(model: HubModel) -> str:
    """What fetches a model into the cache of the machine on which it is typed."""
    revision = "" if model.revision == MAIN else f" --revision {model.revision}"
    return f"hf download {model.name}{revision}"


def absent(model: HubModel, missing: list[str] | None = None) -> UserError:
    """A model, or some of its files, that the cache lacks while nobody may be asked."""
    if missing:
        lacks = f"{_where()} lacks {', '.join(missing[:5])} of it"
        words = f"model {model.title} is not whole: {lacks}"
    else:
        words = f"model {model.title} is no folder here, and {_where()} does not have it"
    return UserError(
        f"{words}; HF_HUB_OFFLINE keeps it from being fetched{_others(model)}. Run "
        f"`{command(model)}` on that machine with network, or share a cache that has it (HF_HOME)"
    )


def refused(model: HubModel, error: Exception) -> UserError:
    """What the Hub, or the way to it, answered."""
    from huggingface_hub import errors

    page, machine = f"https://huggingface.co/{model.name}", socket.gethostname()
    title = f"model {model.title}"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{title} is gated, and {machine} may not fetch it: ask for access on {page}, then log "
            "in with `hf auth login` or set HF_TOKEN, on every machine that fetches it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{title}: the Hub has this model, but no revision {model.revision}: take a branch, tag"
            f" or commit of {page}/commits/main, or leave it out for the main branch"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{title} is no folder here and no model on the Hub, or a private one{_others(model)}. "
            "Look at the spelling; for a private one log in with `hf auth login` or set HF_TOKEN, "
            "on every machine that fetches it"
        )
    return UserError(
        f"{title} is no folder here, {_where()} does not have it, and the Hub does not give it "
        f"({reason(error)}){_others(model)}. Run `{command(model)}` on that machine with network, "
        "or share a cache that has it (HF_HOME)"
    )


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _where() -> str:
    return f"the Hub cache of {socket.gethostname()} ({cache.cache_folder()})"


def _others(model: HubModel) -> str:
    """What else the cache has that may be meant."""
    if commits := [c for c in cache.cached_commits(model.name) if c != model.revision]:
        return f"; cached of it: {', '.join(f'{model.name}@{commit}' for commit in commits[:3])}"
    nearest = cache.nearest_cached(model.name)
    return f"; cached and called alike: {', '.join(nearest)}" if nearest else ""
