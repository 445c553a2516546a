"""From the name of a model to what all processes of a run call it, and to a folder here.

A run says `org/name@commit` to its processes and not a path: each machine has a Hub cache of its
own, and what a branch points to may change while a run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwiser.config.addresses import object_address
from stepwiser.errors import UserError
from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.explanations import absent, reason, refused
from stepwiser.prompting.hub.files import (
    FOREIGN,
    WEIGHTS,
    check_files,
    missing_files,
    names_in,
)
from stepwiser.prompting.hub.reference import EMBEDDED, HubModel, hub_model
from stepwiser.storage.places import open_storage, working_copy
from stepwiser.storage.trees import bring

PATIENCE_S = 10.0
"""Longest wait for the Hub's first answer, so that a machine without network says so soon."""


@dataclass(frozen=True)
class HubCommit:
    """What a revision stands for now."""

    commit: str
    notice: str = ""
    """Why the Hub was not heard, where the cache had to answer for it."""


def resolve_model(model: str, commit: str | None = None) -> str:
    """What every process of a run calls a model: an absolute path, or `org/name@commit`.

    Args:
        model: `embedded`, a folder, `org/name` or `org/name@revision`.
        commit: that the revision has stood for since the run began; asked for if None.

    Raises UserError for a folder that does not exist or has no configuration or tokenizer, and for
    a name that neither the Hub nor this machine's cache knows.
    """
    if object_address(model):
        folder = stored_folder(model, weights=False)
        check_files(model, folder, names_in(folder), weights=False, pickled=False)
        return model
    hub = hub_model(model)
    if hub is None:
        folder = _local_folder(model)
        check_files(model, folder, names_in(folder), weights=False, pickled=False)
        return str(folder)
    return str(hub.at(hub.commit or commit or find_commit(hub).commit))


def find_commit(model: HubModel) -> HubCommit:
    """Ask the Hub what a revision stands for; without it, or offline, the cache.

    Raises UserError where neither knows.
    """
    known = cache.cached_commit(model)
    if model.commit is not None and known:
        return HubCommit(model.commit)
    if cache.is_offline():
        if known is None:
            raise absent(model)
        return HubCommit(known)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=PATIENCE_S)
    except Exception as error:  # the library's HTTP client has errors of its own
        if known is None or isinstance(error, RevisionNotFoundError):
            raise refused(model, error) from error
        return HubCommit(known, f"the Hub was not heard ({reason(error)}): taken from the cache")
    return HubCommit(str(info.sha))


def model_folder(model: str, *, weights: bool = True) -> Path:
    """The folder in which this machine has a model; fetched from the Hub, or from the address of a
    run's own model, where it is not there.

    Args:
        model: as `resolve_model` gives it, or takes it.
        weights: whether they are wanted; else tokenizer, configuration and the like will do.

    Raises UserError, naming machine, model, revision and what to type, where it cannot be had.
    """
    if object_address(model):
        return stored_folder(model, weights=weights)
    hub = hub_model(model)
    if hub is None:
        return _local_folder(model)
    hub = hub.at(hub.commit or find_commit(hub).commit)
    folder = cache.snapshot(hub)
    missing = missing_files(folder, weights) if folder else None
    if folder is not None and not missing:
        return folder
    if cache.is_offline():
        raise absent(hub, missing)
    return _fetch(hub, weights)


def stored_folder(address: str, *, weights: bool) -> Path:
    """The folder of this machine with the model that lies at an address now.

    Raises UserError where there is none.
    """
    storage = open_storage("model", address)
    folder = bring(storage, working_copy(address), without=() if weights else WEIGHTS)
    if folder is None:
        raise UserError(f"{address} does not exist: run the stage that makes this model")
    return folder


def files_on_hub(model: HubModel) -> set[str]:
    """Names of a model's own files; raises UserError where the Hub is not heard."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=PATIENCE_S)
    except Exception as error:  # the library's HTTP client has errors of its own
        raise refused(model, error) from error
    return {file.rfilename for file in info.siblings or () if "/" not in file.rfilename}


def _fetch(model: HubModel, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    # Asked first: a download tries for minutes to reach a Hub that is not there.
    names = files_on_hub(model)
    ignored = [*FOREIGN, "*/*"]
    if not weights:
        ignored += WEIGHTS
    elif any(name.endswith(".safetensors") for name in names):
        ignored += WEIGHTS[1:]
    try:
        return Path(snapshot_download(model.name, revision=model.revision, ignore_patterns=ignored))
    except Exception as error:  # the library's HTTP client has errors of its own
        raise refused(model, error) from error


def _local_folder(model: str) -> Path:
    if model == EMBEDDED:
        from stepwiser.tasks import load_base_model_dir

        return load_base_model_dir()
    path = Path(model).expanduser()
    if not path.is_dir():
        raise UserError(f"model {path} is a file: give the directory that holds it")
    # Workers have working directories of their own.
    return path.absolute()
