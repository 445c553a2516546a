"""What serving a judge has to know of it, in the front matter of its model card.

A judge answers only to the prompt it was trained with, and Positive means what its label rule says:
both travel with the weights, so that a folder, or a name on the Hub, is all that `serve` needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwiser.config.prompts import PromptConfig
from stepwiser.errors import UserError

CARD = "README.md"
SECTION = "stepwiser"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class JudgeSettings(BaseModel):
    """How a judge is asked."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: PromptConfig
    label_rule: str
    max_tokens: int = Field(ge=1, description="Longest analysis and verdict.")
    temperature: float = Field(ge=0, description="At which it was trained.")
    version: int = Field(ge=0, description="Steps trained.")

    def front_matter(self) -> dict[str, Any]:
        """For the card; prompts that are the defaults are written too, as those may change."""
        return {SECTION: self.model_dump(mode="json", exclude_none=True)}


def read_judge_settings(folder: Path) -> JudgeSettings | None:
    """Of a model's folder; None where it has no card of this program.

    Raises UserError for a card that cannot be read.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    found = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    try:
        front = yaml.safe_load(found[1]) if found else None
        section = front.get(SECTION) if isinstance(front, dict) else None
        return None if section is None else JudgeSettings.model_validate(section)
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(
            f"model card {path}: its section {SECTION} cannot be read: {error}"
        ) from error
