"""The memory plan: sizes from files, activations against torch's own, placement, and remedies."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepwiser.config import RunConfig, load_config
from stepwiser.run.memory.machine import Node, this_machine
from stepwiser.run.memory.model_size import ModelSize, read_model_size
from stepwiser.run.memory.plan import Process, StageMemory, place, plan_memory, shortfalls
from stepwiser.run.memory.processes import MicroBatch, _saved_layer, grpo_micro_batch
from stepwiser.run.memory.remedies import remedies, with_settings, words
from stepwiser.tasks import load_base_model_dir
from tests.support.paths import ROOT
from tests.support.tiny import make_tiny_model

GB = 10**9
EMBEDDED = ROOT / "configs" / "embedded.yaml"


def folder_of(name: str) -> str | None:
    return str(load_base_model_dir()) if name == "embedded" else None


def node(gigabytes: float | None, **changes: Any) -> Node:
    limit = None if gigabytes is None else gigabytes * GB
    return replace(Node("this machine", limit, 0.0, 8.0, 0.0, None), **changes)


def test_a_model_is_as_large_as_its_files_say(tmp_path: Path) -> None:
    size = read_model_size(load_base_model_dir())
    assert size == ModelSize(796_544, 4, 128, 384, 4, 4, 2, 32, 70)
    assert size.kv_token(4) == 2 * 4 * 2 * 32 * 4 and size.attention == 128
    assert read_model_size(tmp_path / "none") is None
    tiny = make_tiny_model(tmp_path / "tiny")
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({"text_config": config, "dtype": "bfloat16"}))
    nested = read_model_size(tiny)
    assert nested is not None and (nested.layers, nested.width) == (2, 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_layer_saves_is_what_torch_saves(tmp_path: Path, precision: Any) -> None:
    from actors.learner.batches import ChosenLogprobs, response_batch
    from actors.learner.deepspeed_worker import EngineConfig, _load_model
    from stepwiser.training.experience import Experience, ExperienceBatch

    folder = make_tiny_model(tmp_path / "model", hidden_size=256, layers=3)
    batch = MicroBatch(prompts=2, prompt_tokens=50, responses=8, response_tokens=40, chosen=320)
    rng = np.random.default_rng(0)
    experience = [
        Experience(
            prompt_ids=[10 + group] * batch.prompt_tokens,
            response_ids=rng.integers(3, 400, batch.response_tokens).tolist(),
            advantage=1.0,
            reward=1.0,
            group=group,
            weight_version=0,
        )
        for group in range(2)
        for _ in range(4)
    ]
    made = response_batch(
        ExperienceBatch.from_experiences(experience), [range(4), range(4, 8)]
    ).tokens
    config = EngineConfig(str(folder), 2, precision, False, 1.0, 0.0, False, 1)
    model = ChosenLogprobs(_load_model(config))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # or its place in memory would be another's
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(made)
    size = read_model_size(folder)
    assert size is not None
    planned = size.layers * _saved_layer(size, batch, 4 if precision == "float32" else 2)
    assert planned == pytest.approx(sum(saved.values()), rel=0.1)


def test_a_micro_batch_is_what_the_settings_let_in() -> None:
    config = load_config(EMBEDDED)
    # 64 groups over two ranks; 150 + 8 * 90 tokens each, at most 16384 together, in even parts.
    assert grpo_micro_batch(config) == MicroBatch(16, 150, 128, 90, 128 * 90)
    small = load_config(EMBEDDED, ["learner.max_tokens_per_microbatch=512"])
    assert grpo_micro_batch(small) == MicroBatch(1, 150, 4, 90, 360), "a group is cut"
    for one in (config, small):
        assert grpo_micro_batch(one).tokens <= one.learner.max_tokens_per_microbatch


def test_a_plan_grows_with_what_it_is_made_of() -> None:
    def process(role: str, *overrides: str) -> Process:
        plan = plan_memory(load_config(EMBEDDED, overrides), "train", folder_of)
        return next(p for p in plan.processes if p.role == role)

    learner = partial(process, "learner")
    base = learner()
    assert set(base.host) == {"base", "weights", "gradients", "optimizer", "activations"}
    assert base.host["weights"] == 4 * 796_544
    assert base.host["optimizer"] == pytest.approx(12 * 796_544 / 2), "two ranks share it"
    assert learner("learner.gradient_checkpointing=true").host_bytes < base.host_bytes
    assert learner("learner.max_tokens_per_microbatch=2048").host_bytes < base.host_bytes
    assert learner("train.kl_coefficient=0.1").host["weights"] == 2 * base.host["weights"]
    adapters = learner("learner.lora.rank=8", "train.kl_coefficient=0.1")
    assert adapters.host["weights"] == base.host["weights"], "the KL needs no second copy"
    # Rank 8 in four blocks: two layers of 128 + 128, two of 128 + 64, three of 128 + 384.
    trained = 8 * 4 * 2432
    assert adapters.host["optimizer"] == pytest.approx(12 * trained / 2)
    assert process("engine", "learner.lora.rank=8").host["copies"] == 2 * 4 * trained
    short = learner("learner.lora.rank=8", "learner.max_tokens_per_microbatch=256")
    rest = short.host["gradients"] + short.host["activations"] + short.host["export"]
    assert rest >= 4 * 796_544, "an export merges the whole model"
    assert base.gpu == {} and learner("learner.gpus=1").gpu_bytes > 0


def test_a_model_that_is_not_here_is_said_to_be_unknown() -> None:
    config = load_config(EMBEDDED, ["policy_model=some/name", "judge_model=some/name"])
    plan = plan_memory(config, "annotate", folder_of)
    assert plan.unknown == ("some/name",)
    assert "engine" not in {process.role for process in plan.processes}
    assert plan_memory(config, "report", folder_of) == StageMemory("report")


def test_every_model_that_a_stage_holds_counts(tmp_path: Path) -> None:
    large = make_tiny_model(tmp_path / "large")
    numbers = 10**9
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    )
    with (large / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * numbers)

    def places(name: str) -> str | None:
        return str(large) if name == "org/large" else folder_of(name)

    def largest(stage: str, *overrides: str) -> Process:
        plan = plan_memory(load_config(EMBEDDED, overrides), stage, places)
        assert plan.unknown == ()
        return max(plan.processes, key=lambda one: one.host.get("weights", 0.0))

    judge = "evaluate.judges=[{name: other, model: org/large, kind: %s}]"
    writes = largest("evaluate", judge % "generative")
    scores = largest("evaluate", judge % "skywork")
    assert writes.role == "engine" and writes.host["weights"] >= 2 * 4 * numbers
    assert scores.role == "step scorer" and scores.host["weights"] == 4 * numbers
    small = "evaluate.judges=[{name: other, model: embedded, kind: skywork}]"
    assert largest("evaluate", small).role == "engine", "the larger of what takes turns"
    for key in ("serve.model", "serve.policy"):
        assert largest("serve", f"{key}=org/large").host["weights"] == writes.host["weights"]
    unknown = load_config(EMBEDDED, [judge % "generative", "serve.model=org/large"])
    for stage in ("evaluate", "serve"):
        assert plan_memory(unknown, stage, folder_of).unknown == ("org/large",)
    scorer = load_config(EMBEDDED, [judge % "skywork"])
    assert plan_memory(scorer, "evaluate", folder_of).unknown == ("org/large",)


def test_processes_go_where_they_have_room() -> None:
    def process(role: str, count: int, cpus: float, gpus: float) -> Process:
        return Process(role, count, cpus, gpus, {"base": 3.0 * GB}, {"base": 30.0 * GB})

    stage = StageMemory(
        "train",
        (
            process("engine", 3, 1.0, 1.0),
            process("learner", 1, 2.0, 0.5),
            Process("driver", 1, 0.0, 0.0, {"base": 1.0 * GB}, {}),
        ),
    )
    nodes = [
        node(7.5, name="a", cpus=2.0, gpus=2.0, gpu_limit=20.0 * GB),
        node(9.0, name="b", cpus=4.0, gpus=2.0, gpu_limit=40.0 * GB),
    ]
    first, second = place(stage, nodes)
    assert [(p.role, n) for p, n in first.processes] == [("engine", 2), ("driver", 1)]
    assert [(p.role, n) for p, n in second.processes] == [("engine", 1), ("learner", 1)]
    assert (first.host_bytes, second.host_bytes) == (7 * GB, 6 * GB)
    assert (first.gpu_bytes, second.gpu_bytes) == (30 * GB, 30 * GB)
    assert shortfalls(stage, nodes) == []
    short = shortfalls(stage, [node(6.0, cpus=2.0, gpus=2.0)])[0]
    assert "train needs 7.0 GB of memory on this machine (2 engine x 3.0 GB" in short
    assert short.endswith("but processes may have 6.0 GB there: 1.0 GB short")
    assert shortfalls(stage, [node(None, gpus=4.0)]) == [], "of unknown size"


STAGES = ("annotate", "train")


def needed(config: RunConfig) -> float:
    plans = [plan_memory(config, stage, folder_of) for stage in STAGES]
    return max(place(plan, [node(None)])[0].host_bytes for plan in plans)


@pytest.mark.parametrize("share", [0.97, 0.9, 0.8, 0.65])
def test_what_does_not_fit_is_given_settings_with_which_it_does(share: float) -> None:
    config = load_config(EMBEDDED)
    limit = share * needed(config)

    def fits(changed: RunConfig) -> bool:
        return needed(changed) <= limit

    assert not fits(config)
    enough, settings = remedies(config, STAGES, fits)
    assert 1 <= len(settings) <= (3 if enough else 5) and len({key for key, _ in settings}) == len(
        settings
    )
    for tried in [[one] for one in settings] if enough else [settings]:
        changed = with_settings(config, STAGES, tried)
        assert changed is not None and fits(changed), tried
    assert words(enough, settings).startswith("it fits with ")


def test_what_never_fits_is_told_so() -> None:
    found = remedies(load_config(EMBEDDED), STAGES, lambda changed: False)
    assert "smaller model or a machine with more memory" in words(*found)
    # Settings that cannot be had are not offered: a prompt and an answer must fit a micro-batch.
    config = load_config(EMBEDDED)
    assert with_settings(config, STAGES, [("learner.max_tokens_per_microbatch", 64)]) is None


def test_this_machine_has_what_it_has() -> None:
    here = this_machine(4.0, 0.0, None)
    assert here.limit is not None and here.limit > GB / 4
    assert here.others > 0
