"""The label stage without Ray: rollouts that were stopped early, and which prompts are kept."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.stages.label import _compare_rules, _nothing_to_label, _refuse_unsettled, _split
from stepwiser.annotation.judge_prompts import UNSPLIT, label_trajectory
from stepwiser.annotation.label_rules import LabelRule
from stepwiser.config import RunConfig, load_config
from stepwiser.config.annotation import LabelConfig
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.errors import UserError
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.export import Format, export
from stepwiser.run.store import RunStore
from stepwiser.tasks.tokenizer import build_tokenizer
from tests.stepwiser.run.annotated_run import trajectory, values, write_unit
from tests.support.paths import ROOT

PROMPTS = PromptFormat(build_tokenizer(), load_config(ROOT / "configs" / "embedded.yaml").prompts)


def _stopped(of: Trajectory, *counts: tuple[int, int, int]) -> list[ChunkValue]:
    """Successes, trials and planned completions of each chunk."""
    rows = values(of, [successes for successes, _, _ in counts])
    return [
        replace(row, trials=trials, planned=planned)
        for row, (_, trials, planned) in zip(rows, counts, strict=True)
    ]


def _session(root: Path, **label: Any) -> Any:
    """Q_0 = 2/4; 4 of 4 so far, 0 of 14 so far, and a wrong outcome, with 16 planned."""
    config = RunConfig.model_validate(
        {
            "run_dir": str(root),
            "data": {"source": "file.jsonl"},
            "annotate": {"stopping": "exact", "rules": [{"rule": "rel_effective"}]},
            "label": label,
        }
    )
    store = RunStore(root).open(config)
    row = trajectory("t1")
    write_unit(store, "aaaa", [(row, _stopped(row, (4, 4, 16), (0, 14, 16), (0, 1, 1)))])
    return SimpleNamespace(config=config, store=store)


def test_labels_come_from_what_cannot_change_and_not_from_the_mean() -> None:
    row = trajectory("t1")
    # At least 4/16, and then at most 2/16: .125 + .8 (.414 − .684) < 0.
    own = _stopped(row, (4, 4, 16), (1, 15, 16), (0, 1, 1))
    labels = [p.label for p in label_trajectory(row, own, LabelConfig(), PROMPTS)]
    assert labels == [True, False, False]
    # 5 of 9 look like more than .7 × 2/4, but may come to 5 of 16.
    open_row = _stopped(row, (5, 9, 16), (4, 4, 16), (0, 1, 1))
    with pytest.raises(ValueError, match="chunk 0 of trajectory t1 has no label"):
        label_trajectory(row, open_row, LabelConfig(rule="rel_ratio"), PROMPTS)


def test_no_label_behind_a_low_value() -> None:
    row = trajectory("t1")
    own = _stopped(row, (1, 12, 16), (4, 4, 16), (0, 1, 1))
    config = LabelConfig(rule="abs_q", minimum_previous_value=0.35)
    prompts = label_trajectory(row, own, config, PROMPTS)
    assert [(p.chunk_index, p.label, p.previous_value) for p in prompts] == [(0, True, 0.5)]


def test_rules_that_were_not_asked_about_are_not_compared(tmp_path: Path) -> None:
    session = _session(tmp_path)
    compared, unsettled = _compare_rules(session, ["aaaa"])
    rows = {row["rule"]: row for row in compared}
    assert rows["rel_effective"]["positive_share"] == pytest.approx(1 / 3)
    assert rows["rel_effective"]["unsettled"] == 0
    # Nothing succeeded after chunk 2 so far, but 2 completions are missing.
    assert (rows["abs_q"]["positive_share"], rows["abs_q"]["unsettled"]) == (None, 1)
    _refuse_unsettled(session, unsettled)


def test_a_rule_that_was_not_asked_about_is_refused(tmp_path: Path) -> None:
    session = _session(tmp_path, rule="abs_q")
    with pytest.raises(UserError) as error:
        _refuse_unsettled(session, _compare_rules(session, ["aaaa"])[1])
    for words in (
        "label.rule=abs_q is open for 1 chunks",
        "annotate.stopping=exact",
        "rel_effective(alpha=0.8, best_of=4)",
        "add this one to annotate.rules",
    ):
        assert words in str(error.value)
    with pytest.raises(UserError, match="labels by abs_q are open in trajectory t1"):
        export(session.store, Format.TRL, tmp_path / "out.jsonl", LabelRule.ABS_Q)
    assert export(session.store, Format.TRL, tmp_path / "out.jsonl", LabelRule.REL_EFFECTIVE)


def test_values_that_are_complete_answer_any_rule(tmp_path: Path) -> None:
    session = _session(tmp_path, rule="rel_ratio")
    row = trajectory("t1")
    whole = _stopped(row, (9, 16, 16), (3, 16, 16), (0, 1, 1))
    write_unit(session.store, "bbbb", [(row, whole)])
    rules, unsettled = _compare_rules(session, ["bbbb"])
    assert [r["positive_share"] for r in rules] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    _refuse_unsettled(session, unsettled)


def test_a_rule_that_has_to_agree_is_refused_where_it_is_open(tmp_path: Path) -> None:
    session = _session(tmp_path, agree_with=[{"rule": "abs_q"}])
    with pytest.raises(UserError, match="label.agree_with=abs_q is open for 1 chunks"):
        _refuse_unsettled(session, _compare_rules(session, ["aaaa"])[1])


def test_without_a_chunk_it_is_said_what_was_annotated(tmp_path: Path) -> None:
    store = _session(tmp_path).store
    write_unit(store, "bbbb", [])
    said = str(_nothing_to_label(store, ["bbbb"]))
    assert "2 problems are annotated" in said and "data.limit" in said


def test_the_same_prompts_are_kept_in_whatever_order_they_come() -> None:
    """Ray Data's blocks come in another order each time."""
    config = load_config(ROOT / "configs" / "embedded.yaml", ["label.heldout_share=0.3"])
    rows = [
        SimpleNamespace(
            prompt_id=f"{problem}-{chunk}",
            problem_id=str(problem),
            label=(problem + chunk) % 4 > 0,
            split=UNSPLIT,
        )
        for problem in range(40)
        for chunk in range(5)
    ]
    first, metrics = _split(rows, config)
    assert set(first.values()) == {"train", "heldout", "spare"}
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert _split(shuffled, config) == (first, metrics)
