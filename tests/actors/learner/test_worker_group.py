"""Metrics files and errors of a worker group; no Ray needed."""

from __future__ import annotations

import json
import time

import pytest

from actors.learner.worker_group import TrainingError, WorkerGroup, _followed, _readable
from stepwiser.errors import UserError
from stepwiser.run.metrics_file import append_metrics, read_metrics


def test_the_later_line_of_a_step_is_the_one_in_the_weights(tmp_path):
    path = str(tmp_path / "deep" / "metrics.jsonl")
    for step, loss in [(0, 3.0), (1, 2.0), (2, 9.0), (1, 2.1), (2, 1.0)]:
        append_metrics(path, "train", "judge", {"step": step, "loss": loss})
    append_metrics(path, "sft", "judge", {"step": 0, "loss": 7.0})
    append_metrics(path, "train", "other", {"step": 0, "loss": 7.0})
    with open(path, "a") as file:
        file.write('{"kind": "something else"}\n{"kind": "train", "na')
    assert [line["loss"] for line in read_metrics(path, "train", "judge")] == [3.0, 2.1, 1.0]
    assert read_metrics(str(tmp_path / "absent"), "train", "judge") == []


def test_a_callback_sees_only_what_is_new_and_all_of_it(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    append_metrics(path, "train", "judge", {"step": 0})
    seen = []
    with _followed(path, ("train",), seen.append):
        append_metrics(path, "train", "judge", {"step": 1})
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.05)
        append_metrics(path, "sft", "judge", {"step": 5})
        append_metrics(path, "train", "judge", {"step": 2})
    assert [line["step"] for line in seen] == [1, 2]


def test_a_half_written_line_waits_for_its_rest(tmp_path):
    path = tmp_path / "metrics.jsonl"
    seen = []
    text = json.dumps({"kind": "train", "name": "judge", "step": 0}) + "\n"
    with _followed(str(path), ("train",), seen.append):
        path.write_text(text[:10])
        time.sleep(1.2)
        with path.open("a") as file:
            file.write(text[10:])
    assert [line["step"] for line in seen] == [0]


class _Failed(Exception):
    def __init__(self, failures):
        super().__init__("many words")
        self.worker_failures = failures


def test_the_rank_that_failed_speaks_not_the_one_that_lost_it():
    group = WorkerGroup(name="judge", storage_path="", max_failures=2)
    error = _Failed({0: RuntimeError("[gloo] Connection closed by peer"), 1: KeyError("token")})
    readable = _readable(group, error)
    assert isinstance(readable, TrainingError)
    assert "'judge' failed on rank 1 after 2 restarts: KeyError: 'token'" in str(readable)


def test_a_mistake_of_the_user_stays_one():
    group = WorkerGroup(name="judge", storage_path="")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = UserError("no model in /x")
    assert str(_readable(group, _Failed({0: wrapped}))) == "no model in /x"


def test_a_pass_that_did_not_fit_on_a_gpu_is_named_with_what_to_set():
    torch = pytest.importorskip("torch")
    group = WorkerGroup(name="judge", storage_path="", gpus_per_worker=0.4)
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 3.00 GiB is free. Process 7 has 70.00 GiB memory in use."
    )
    readable = _readable(group, _Failed({0: error}))
    assert isinstance(readable, UserError)
    for words in (
        "Tried to allocate 9.00 GiB",
        "79.11 GiB",
        "learner.max_tokens_per_microbatch=16384 (to 8192)",
        "learner.gradient_checkpointing=true",
        "engine.gpu_memory_utilization",
    ):
        assert words in str(readable)
    assert "Process 7" not in str(readable)


@pytest.mark.parametrize(
    "options", [{"num_workers": 0}, {"zero_stage": 1}, {"precision": "float16"}]
)
def test_impossible_groups_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        WorkerGroup(name="judge", storage_path="", **options)
