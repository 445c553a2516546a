"""The run directory: whole files, its own config only, a full disk said so."""

import errno
import os
from pathlib import Path

import pytest

from stepwiser.config import parse_config
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.storage.folder import writing


def _value(index: int) -> ChunkValue:
    return ChunkValue("t", "p", index, 3, 16, 0, 0, 100, False, 16, 0.0, 3, 16, 0.066, 0.43)


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.write_table("values", "u1", ChunkValue.to_table([_value(0), _value(1)]))
    store.write_table("values", "u2", ChunkValue.to_table([]))
    assert store.units("values") == {"u1", "u2"}
    rows = ChunkValue.from_table(store.read_table("values", "annotate"))
    assert rows == [_value(0), _value(1)]


def test_an_empty_unit_has_the_columns_of_a_full_one() -> None:
    assert Trajectory.to_table([]).schema == Trajectory.schema()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device.*finished work is kept"):
        RunStore(tmp_path).write_table("values", "u", ChunkValue.to_table([_value(0)]))
    assert list((tmp_path / "values").iterdir()) == []


def test_dev_full_is_a_full_disk_too() -> None:
    with pytest.raises(UserError, match="cannot write"), writing(Path("/dev/full/x")) as path:
        path.write_text("x")


def test_a_run_directory_belongs_to_one_config(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.open(parse_config({}))
    store.open(parse_config({"engine": {"count": 5}}))
    with pytest.raises(UserError, match=r"train.steps: 800 -> 7"):
        store.open(parse_config({"train": {"steps": 7}}))


def test_a_commit_and_the_name_that_stands_for_it_are_one_model(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.open(parse_config({"policy_model": "org/policy", "judge_model": "org/judge@v2"}))
    commits = {
        "policy_model": "a" * 40,
        "judge_model": "b" * 40,
        "evaluate.judges.x.model": "c" * 40,
    }
    names = {"judge_model": ("org/judge", "v2")}
    store.record_models(
        {
            key: dict(
                zip(("name", "revision"), names.get(key, ("org/policy", "main")), strict=True)
            )
            | {"commit": commit}
            for key, commit in commits.items()
        }
    )
    policy, judge = f"org/policy@{'a' * 40}", f"org/judge@{'b' * 40}"
    for asked in (
        {"policy_model": policy, "judge_model": "org/judge@v2"},
        {"policy_model": "org/policy", "judge_model": judge},
        {"policy_model": "org/policy@main", "judge_model": judge},
    ):
        store.open(parse_config(asked))
    for asked in (
        {"policy_model": f"org/policy@{'b' * 40}", "judge_model": judge},
        {"policy_model": "org/policy@v1", "judge_model": judge},
        {"policy_model": policy, "judge_model": "org/judge"},
    ):
        with pytest.raises(UserError, match="another config"):
            store.open(parse_config(asked))


def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stepwiser train"):
        RunStore(tmp_path).find_model("judge", "train")
    with pytest.raises(UserError, match="stepwiser annotate"):
        RunStore(tmp_path).read_table("values", "annotate")
