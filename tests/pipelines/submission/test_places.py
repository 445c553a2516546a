"""Settings that would mean something else on a cluster."""

from pathlib import Path

import pytest

from pipelines.submission.places import find_places
from pipelines.submission.travel import Cargo
from stepwiser.config import load_config


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("train.jsonl", "checks.py", "model/config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def _refused(here: Path, *overrides: str, travels: tuple[str, ...] = ()) -> list[str]:
    cargo = Cargo({name: here / name for name in travels})
    config = load_config(None, ["run_dir=/shared/run", *overrides])
    return list(find_places(config, here, cargo).refused)


@pytest.mark.parametrize("place", ["/shared/run", "s3://bucket/run", "gs://bucket/run"])
def test_a_run_directory_that_nodes_share_will_do(here: Path, place: str) -> None:
    assert _refused(here, f"run_dir={place}") == []


@pytest.mark.parametrize("place", ["runs/mine", "~/runs/mine", "./mine"])
def test_one_in_the_jobs_own_folder_is_refused(here: Path, place: str) -> None:
    (words,) = _refused(here, f"run_dir={place}")
    assert f"run_dir={place}" in words and "run_dir=/shared/mine" in words


@pytest.mark.parametrize(
    ("setting", "file"),
    [
        ("data.source=train.jsonl", "train.jsonl"),
        ("evaluation_data.source=./train.jsonl", "train.jsonl"),
        ("policy_model=model", "model/config.json"),
        ("serve.model=model", "model/config.json"),
        ("evaluate.more=[{source: train.jsonl, name: mine}]", "train.jsonl"),
        ("answer_checker=checks:same", "checks.py"),
    ],
)
def test_what_is_here_alone_is_refused_until_it_travels(
    here: Path, setting: str, file: str
) -> None:
    (words,) = _refused(here, setting)
    assert setting.split("=")[0] in words and "--with" in words
    assert _refused(here, setting, travels=(file,)) == []


def test_names_and_places_of_the_cluster_pass(here: Path) -> None:
    assert not _refused(
        here,
        "policy_model=Qwen/Qwen2.5-7B-Instruct",
        "data.source=openai/gsm8k",
        "judge_model=/shared/models/judge",
        "answer_checker=package_over_there.checks:same",
    )


def test_a_whole_path_that_is_here_too_is_told_and_one_from_home_is_refused(here: Path) -> None:
    config = load_config(None, ["run_dir=/shared/run", f"data.source={here}/train.jsonl"])
    found = find_places(config, here, Cargo({}))
    assert not found.refused
    (words,) = found.warned
    assert words.startswith(f"data.source={here}/train.jsonl is on this machine")
    (words,) = _refused(here, "data.source=~/train.jsonl")
    assert "whole path" in words
