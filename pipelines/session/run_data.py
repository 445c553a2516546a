"""Where the data of a run comes from, and where it goes to: a name on the Hub stands for one commit
from its first reading on."""

from __future__ import annotations

from rich.console import Console

from stepwiser.config import DataConfig
from stepwiser.data.sources import at_commit, hub_source
from stepwiser.prompting.hub.datasets import find_dataset
from stepwiser.run.store import RunStore


def pinned(store: RunStore, data: DataConfig) -> DataConfig:
    """A source on the Hub at the commit that this run has read first, which is written down; other
    sources as they are, and those whose commit nobody knows."""
    hub = hub_source(data)
    if hub is None:
        return data
    commit = store.datasets().get(str(hub))
    if commit is None:
        commit = find_dataset(hub).commit
        if commit is None:
            return data
        store.record_dataset(str(hub), commit)
    return at_commit(data, commit)


def tell_of_conditions(store: RunStore, console: Console) -> None:
    """Say where the place of a run cannot keep several starts from counting a unit twice."""
    if not store.storage.holds_conditions():
        console.print(
            f"{store.place}: this store has no conditional puts, by which several starts at once "
            "would count each unit once: let one start write at a time",
            style="yellow",
            soft_wrap=True,
        )
