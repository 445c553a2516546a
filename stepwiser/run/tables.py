"""Tables of a run that several stages read."""

from __future__ import annotations

from stepwiser.data.records import JudgePrompt
from stepwiser.run.store import RunStore


def load_judge_prompts(store: RunStore, split: str) -> list[JudgePrompt]:
    """Labelled prompts of one split, in a fixed order."""
    table = store.read_table("judge_prompts", "label")
    rows = [row for row in JudgePrompt.from_table(table) if row.split == split]
    return sorted(rows, key=lambda row: row.prompt_id)
