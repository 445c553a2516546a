"""`stepwiser data check`, and what every command does with an address or a bad row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.session.session import Session
from stepwiser.config import DataConfig, load_config
from stepwiser.errors import UserError
from tests.pipelines.cli.test_run_commands import run
from tests.stepwiser.run.annotated_run import write_run
from tests.support.paths import ROOT

EMBEDDED = ROOT / "configs" / "embedded.yaml"
ITEM = {
    "id": "a",
    "problem": "p",
    "steps": ["one", "two"],
    "label": 1,
    "final_answer_correct": False,
}


def write(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_problems_are_shown_as_the_policy_sees_them(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(12)]
    rows += [{"problem": "", "answer": 1}, {"problem": "What is 3 + 1?", "answer": 4}]
    path = write(tmp_path, *rows)
    output = run("data", "check", path, "answer_checker=exact")
    for words in ("14", "answer, problem", "column problem", "accepted", "12", "refused", "2"):
        assert words in output
    assert "column problem is empty" in output and "the same problem came before" in output
    assert output.count("reference answer: ") == 10
    assert "Reason step by step" in output and "What is 3 + 1?" in output
    assert "example 1 of 2" in run("data", "check", path, "--examples", 2, "answer_checker=exact")


def test_a_named_policy_shows_its_own_template(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "ana has 3. buys 4. ?", "answer": "so\n#### 7"})
    output = run("data", "check", "embedded", "-c", EMBEDDED, "--examples", 1)
    assert "reference answer: " in output and "template" not in output
    output = run("data", "check", path, "data.like=gsm8k", "policy_model=no/where")
    assert "reference answer: 7" in output and "what follows the last '####'" in output


def test_a_row_that_ends_a_stage_is_listed_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, {"problem": "p", "answer": "1"}, {"problem": "q"}, [1])
    output = run("data", "check", path, "answer_checker=exact", code=1)
    assert "2 rows cannot be read: a stage ends there" in output.replace("\n", "")
    assert "no column 'answer'" in output.replace("\n", "")
    assert "no column" in run("data", "check", write(tmp_path, {"a": 1}), code=2)


def test_messages_say_what_is_left_out(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Box it."}, {"role": "user", "content": "1 + 1?"}]
    path = write(tmp_path, {"problem": turns, "answer": 2})
    output = run("data", "check", path, "answer_checker=exact")
    assert "1 + 1?" in output and "system message in 1 rows" in " ".join(output.split())
    assert "Box it." not in output


def test_labelled_steps_are_shown_as_the_judge_sees_them(tmp_path: Path) -> None:
    path = write(tmp_path, ITEM, ITEM, ITEM | {"label": -1, "id": "b"})
    output = run("data", "check", path)
    for words in ("ProcessBench", "3: 2 with a wrong step, 1 without", "'a' (2 items)"):
        assert words in output
    assert "### New step\ntwo" in output and "step 1 is the first wrong" in output
    bad = write(tmp_path, ITEM, ITEM | {"id": "b", "steps": "abc"})
    assert "not a list of steps" in run("data", "check", bad, code=1).replace("\n", "")


def test_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path, {"problem": "p\x1b[31m", "answer": "1"})
    assert "\x1b[31m" not in run("data", "check", path, "answer_checker=exact")


def test_it_starts_neither_ray_nor_an_engine(tmp_path: Path) -> None:
    path = write(tmp_path, {"problem": "p", "answer": "1"})
    code = (
        "import sys; from typer.testing import CliRunner; from pipelines.cli import app\n"
        f"words = ['data', 'check', {str(path)!r}, 'answer_checker=exact']\n"
        "result = CliRunner().invoke(app, words)\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not {'ray', 'vllm', 'deepspeed'} & set(sys.modules)"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["status", "hdfs://host/run"],
        ["export", "hdfs://host/run", "--format", "trl", "--out", "x"],
        ["export", "RUN", "--format", "trl", "--out", "s3://bucket/out.jsonl"],
        ["merge", "RUN", "--out", "gs://bucket/out"],
        ["merge", "s3://bucket/run", "--out", "x"],
        ["plan", "annotate", "--run", "hdfs://host/run"],
        ["report", "run_dir=hdfs://host/run"],
        ["annotate", "--plan", "run_dir=hdfs://host/run"],
        ["annotate", "--config", "https://host/a.yaml"],
        ["ablate", "--out", "s3://bucket/x"],
        ["data", "check", "s3://bucket/a.jsonl"],
    ],
    ids=" ".join,
)
def test_an_address_is_never_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "run") if word == "RUN" else word for word in command]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert "is an address of the scheme" in " ".join(result.output.replace("│", " ").split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_file_address_is_a_run_directory(tmp_path: Path) -> None:
    write_run(tmp_path / "the run")
    address = f"file://{tmp_path}/the%20run"
    assert "done" in run("status", address)
    out = f"file://{tmp_path}/out.jsonl"
    run("export", address, "--format", "trl", "--out", out)
    assert (tmp_path / "out.jsonl").is_file()


def test_impossible_settings_are_refused_before_a_plan() -> None:
    assert "train.group_size=1" in run("train", "--plan", "train.group_size=1", code=2)
    assert "label.heldout_share=1" in run("train", "--plan", "label.heldout_share=1", code=2)
    run("label", "--plan", "label.heldout_share=1")


def test_bad_rows_end_a_start_or_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, {"problem": "ana has 3.", "answer": "1"}, {"problem": "q"})
    config = load_config(EMBEDDED, [f"run_dir={tmp_path}/run", f"data.source={path}"])
    session = Session(config)
    with pytest.raises(UserError, match=r"row 1: no column 'answer'.*\(line 2\).*--skip-bad-rows"):
        session.load(config.data, "train")
    skipping = DataConfig(source=str(path), skip_bad_rows=True)
    (problem,) = session.load(skipping, "train")
    assert problem.question == "ana has 3."
    (listed,) = json.loads((tmp_path / "run" / "rejects" / "train-0.json").read_text())
    assert listed["row"] == 1 and "no column 'answer'" in listed["reason"]


def test_the_option_skips_rows_of_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.stages.runner as runner

    seen = []
    monkeypatch.setattr(
        runner, "run_stages", lambda config, stages, joins: seen.append((config, stages))
    )
    run("annotate", "--skip-bad-rows")
    run("quickstart", "--skip-bad-rows")
    run("evaluate")
    skips = [
        (c.data.skip_bad_rows, c.evaluation_data.skip_bad_rows, c.evaluate.skip_bad_rows)
        for c, _ in seen
    ]
    assert skips == [(True,) * 3, (True,) * 3, (False,) * 3]
