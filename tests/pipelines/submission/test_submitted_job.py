"""Names of jobs, who is in whose way, and the plain line that does the same."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.session.session import COUNT_S
from pipelines.submission.job import STOP_S, Job, Known, at_work, find, next_name, plain_line
from pipelines.submission.job import variables as variables_of
from stepwiser.errors import UserError

JOB = Job("annotate", ("annotate",), "s3://bucket/Paper 7B", ("--config", "a b.yaml", "seed=1"))


def _known(name: str = "", state: str = "RUNNING", job: Job = JOB) -> Known:
    return Known(name or f"{job.key}-1", state, job.run, job.stages, job.part)


def test_the_name_says_run_and_command_and_keeps_runs_apart() -> None:
    assert JOB.key.startswith("paper-7b-annotate-")
    assert replace(JOB, run="s3://other/Paper 7B").key != JOB.key
    assert replace(JOB, words=("seed=2",)).key == JOB.key, "what resumes is called alike"
    assert replace(JOB, part="1/4").key.startswith("paper-7b-annotate-1of4-")
    assert JOB.entrypoint == "python -m pipelines.cli annotate --config 'a b.yaml' seed=1"


def test_starts_are_counted() -> None:
    known = [_known(f"{JOB.key}-{n}", "FAILED") for n in (1, 2, 11)]
    known.append(_known("of-somebody-else-40", "FAILED"))
    assert next_name(JOB, []) == f"{JOB.key}-1"
    assert next_name(JOB, known) == f"{JOB.key}-12"
    assert find(JOB.key, known).name == f"{JOB.key}-11"
    assert find(f"{JOB.key}-2", known).name == f"{JOB.key}-2"
    with pytest.raises(UserError, match="no job nothing; the last ones are: .*-40"):
        find("nothing", known)


def test_one_job_a_stage_of_a_run() -> None:
    whole = replace(JOB, command="quickstart", stages=("annotate", "label"))
    assert at_work(JOB, [_known()]) == _known()
    assert at_work(JOB, [_known(job=whole)]) is not None, "a quickstart annotates too"
    assert at_work(JOB, [_known(state="PENDING")]) is not None
    for state in ("STOPPED", "SUCCEEDED", "FAILED"):
        assert at_work(JOB, [_known(state=state)]) is None
    assert at_work(JOB, [_known(job=replace(JOB, run="s3://bucket/other"))]) is None
    assert at_work(JOB, [_known(job=replace(JOB, stages=("train",)))]) is None
    first, second = replace(JOB, part="0/2"), replace(JOB, part="1/2")
    assert at_work(first, [_known(job=second)]) is None
    assert at_work(first, [_known(job=first)]) and at_work(first, [_known()])


def test_variables_come_from_the_line_or_from_here() -> None:
    here = {"HF_TOKEN": "secret"}
    assert variables_of(["A=b=c", "HF_TOKEN"], here) == {"A": "b=c", "HF_TOKEN": "secret"}
    for wrong in ("1A=b", "NOT_HERE", "RAY_AUTH_TOKEN=secret", "PYTHONPATH=/x"):
        with pytest.raises(UserError) as refused:
            variables_of([wrong], here)
        assert "secret" not in str(refused.value)


def test_the_plain_line_does_the_same_and_tells_no_value() -> None:
    line = plain_line(JOB, "name-1", "http://head:8265", Path("/a b"), ["HF_TOKEN", "X"], 180)
    # As a shell reads it, in which the variables are set.
    echo = line.replace("ray job submit", 'printf "%s\\n"', 1)
    words = subprocess.run(
        ["bash", "-c", echo], env={"HF_TOKEN": "se'c ret", "X": "1"}, capture_output=True, text=True
    ).stdout.splitlines()
    options = dict(zip(words[1:11:2], words[2:12:2], strict=True))
    assert words[0] == "--no-wait"
    assert options["--address"] == "http://head:8265"
    assert options["--submission-id"] == "name-1"
    assert options["--working-dir"] == "/a b"
    assert json.loads(options["--metadata-json"]) == JOB.metadata
    assert json.loads(options["--runtime-env-json"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180", "HF_TOKEN": "se'c ret", "X": "1"}
    }
    assert words[11] == "--" and words[12:] == shlex.split(JOB.entrypoint)


def test_a_stage_has_longer_to_end_than_it_may_take() -> None:
    # `solve` has two pools; what ends with them takes seconds.
    assert STOP_S >= 2 * COUNT_S + 30
