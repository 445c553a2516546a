"""Items of a file reach the judges whole; what is wrong with the file is said and listed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.evaluation.items import evaluation_items
from pipelines.session.session import Session
from stepwiser.config import load_config
from stepwiser.errors import UserError
from tests.support.paths import ROOT

ITEM = {
    "id": "a", "problem": "p", "steps": ["one", "two"], "label": 1, "final_answer_correct": False
}  # fmt: skip


def session_of(folder: Path, printed: io.StringIO, *overrides: str) -> Session:
    (folder / "set.json").write_text(
        json.dumps([ITEM, ITEM | {"label": -1}, ITEM | {"steps": "x"}])
    )
    source = f"evaluate.source={folder}/set.json"
    named = (f"run_dir={folder}/run", source, "evaluate.name=a set", *overrides)
    config = load_config(ROOT / "configs" / "embedded.yaml", named)
    return Session(config, Console(file=printed, width=400))


def test_ids_that_items_share_are_named_and_bad_rows_listed(tmp_path: Path) -> None:
    printed = io.StringIO()
    with pytest.raises(UserError, match=r"set\.json, row 2: column steps .*--skip-bad-rows"):
        evaluation_items(session_of(tmp_path, printed))
    items = evaluation_items(session_of(tmp_path, printed, "evaluate.skip_bad_rows=true"))
    assert [(item.id, item.label) for item in items] == [("a", 1), ("a~2", -1)]
    assert "a set: several items have one id: 'a' (2 items)" in printed.getvalue()
    (listed,) = json.loads((tmp_path / "run" / "rejects" / "evaluation-a-set.json").read_text())
    assert listed["row"] == 2 and "steps" in listed["reason"]
