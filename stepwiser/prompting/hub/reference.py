"""How a configuration and a process call a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stepwiser.config.addresses import object_address
from stepwiser.errors import UserError

EMBEDDED = "embedded"
"""The packaged base model."""

MAIN = "main"
"""The branch that a name without a revision means."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]+))?")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub, at one revision."""

    name: str
    """`org/name`."""
    revision: str = MAIN
    """A branch, a tag or a commit."""

    @property
    def commit(self) -> str | None:
        """The revision, where it names one commit and not what may move on."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None

    @property
    def title(self) -> str:
        """As a person would write it."""
        return self.name if self.revision == MAIN else str(self)

    def at(self, commit: str) -> HubModel:
        return HubModel(self.name, commit)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


def hub_model(model: str) -> HubModel | None:
    """What the name of a model says; None for `embedded`, a folder, and the address of one.

    A folder of the working directory that is called like a name on the Hub goes first.

    Raises UserError for what can be neither.
    """
    if model == EMBEDDED or object_address(model) or Path(model).expanduser().exists():
        return None
    match = None if model[:1] in ("/", ".", "~") else _NAME.fullmatch(model)
    if match is None:
        raise UserError(
            f"model {model} does not exist: give a Hugging Face directory, or a name on the Hub "
            "(org/name, or org/name@revision)"
        )
    return HubModel(match[1], match[2] or MAIN)
