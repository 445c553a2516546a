"""From what a person writes to the place that is meant."""

from __future__ import annotations

from pathlib import Path

from stepwiser.config.addresses import local_path, object_address
from stepwiser.storage.folder import Folder
from stepwiser.storage.interface import Storage
from stepwiser.storage.objects import Objects


def open_storage(name: str, place: str | Path) -> Storage:
    """The storage at a path or an address; ``name`` is the key or option that says so.

    Raises UserError for an address that no storage is known for.
    """
    address = object_address(place)
    if address is not None:
        return Objects(address)
    return Folder(local_path(name, place))
