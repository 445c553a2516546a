"""The measurement of training: both arms get the same work, and its figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.process_monitor import Moment
from benchmarks.training.loss import measure_loss
from benchmarks.training.memory import growth, lines_of
from benchmarks.training.plain_torch import ARMS, run_arm
from benchmarks.training.plain_torch import summarize as summarize_torch
from benchmarks.training.torch_arm import Measured, TorchTask, batch, plain_update
from benchmarks.training.trl import (
    SETTINGS,
    Run,
    Setting,
    conversations,
    final_reward,
    oracle_prompts,
    prepare,
    run_trl,
    seconds_of_a_step,
    summarize,
    trl_task,
)
from benchmarks.training.trl_arm import TRLTask, trainer_settings
from stepwiser.config import RunConfig
from stepwiser.prompting.hub.folders import resolve_model
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.store import RunStore
from tests.support.tiny import make_tiny_model

STEPS = ("train.steps=3", "train.prompts_per_step=8", "train.minibatch_prompts=4")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return prepare(tmp_path / "run", oracle_prompts(40, seed=1), [*STEPS, "train.group_size=4"])


def test_the_oracle_labels(config: RunConfig) -> None:
    prompts = oracle_prompts(400, seed=5)
    assert 150 < sum(p.label for p in prompts) < 250
    assert prompts == oracle_prompts(400, seed=5) != oracle_prompts(400, seed=6)
    assert len(RunStore(config.run_dir).read_table("judge_prompts", "label")) == 40


@pytest.mark.parametrize("setting", SETTINGS)
def test_trl_is_asked_for_the_work_of_our_steps(config: RunConfig, setting: Setting) -> None:
    task = trl_task(config, setting, Path("somewhere"))
    found = trainer_settings(task)
    completions = found["per_device_train_batch_size"] * task.processes
    of_an_update = completions * found["gradient_accumulation_steps"]
    assert of_an_update == 4 * 4  # minibatch_prompts × group_size
    assert completions * found["steps_per_generation"] == 8 * 4
    assert found["max_steps"] == 3 * 2
    assert task.processes * task.threads == 2
    train = config.train
    for name, value in (
        ("num_generations", 4),
        ("num_iterations", 1),
        ("max_completion_length", 90),
        ("temperature", 1.0),
        ("learning_rate", train.learning_rate),
        ("epsilon", train.clip_low),
        ("epsilon_high", train.clip_high),
        ("beta", train.kl_coefficient),
        ("max_grad_norm", train.max_grad_norm),
    ):
        assert found[name] == value, name
    # What TRL is told once and for all is what ours are configured to.
    assert train.schedule == "constant" and train.warmup_steps == 0
    assert train.normalize_advantages and train.aggregation == "token_mean"


def test_micro_batches_must_fit(config: RunConfig) -> None:
    task = trl_task(config, SETTINGS[0], Path("somewhere"))
    with pytest.raises(ValueError, match="do not divide 32 completions"):
        trainer_settings(replace(task, micro_batch=5))


def test_trl_reads_the_prompts_of_our_steps(config: RunConfig) -> None:
    rows = conversations(config)
    assert len(rows) == 3 * 8
    assert [row["label"] for row in rows] == 3 * (4 * [True] + 4 * [False])
    prompts = PromptFormat.from_model_dir(resolve_model("embedded"), config.judge_prompts)
    ours = {
        tuple(prompts.judge_ids(p.question, p.history, p.chunk)) for p in oracle_prompts(40, seed=1)
    }
    for row in rows:
        theirs = prompts.tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert tuple(theirs["input_ids"]) in ours


def test_summary() -> None:
    ours = [Run((10.0, 12.0, 14.0), (0.5, 0.5, 0.6)), Run((0.0, 3.0, 6.0), (0.5, 0.5, 0.8))]
    theirs = [Run((5.0, 11.0, 17.0), (0.4, 0.5, 0.6)), Run((0.0, 15.0, 30.0), (0.5, 0.5, 0.6))]
    found = summarize(ours, theirs, samples=60)
    assert found["samples_vs_trl"] == 4.0  # median of 3 and 5
    assert (found["samples_vs_trl_least"], found["samples_vs_trl_most"]) == (3.0, 5.0)
    assert found["samples_per_s"] == pytest.approx(25.0)  # of 30 and 20
    assert found["samples_per_s_trl"] == pytest.approx(7.0)  # of 10 and 4
    assert found["reward"] == pytest.approx(0.7) and found["reward_se"] == pytest.approx(0.1)
    assert found["reward_trl"] == pytest.approx(0.6)


def test_final_reward_of_one_run() -> None:
    mean, error = final_reward([[0.1] * 8 + [0.6, 0.8]])
    assert mean == pytest.approx(0.7) and error == pytest.approx(0.1)


def test_seconds_leave_the_first_step_out() -> None:
    curve = [{"step": i, "seconds_train": s} for i, s in enumerate((100.0, 1.0, 2.0, 3.0))]
    assert seconds_of_a_step([curve, curve]) == {"seconds_train": 2.0}


def test_growth() -> None:
    moments = [
        Moment(float(s), s, {}, {"flat": 100, "grows": 100 + s, "at the end": 1}, 0.0)
        for s in range(11)
    ]
    moments = [
        m if m.done > 7 else replace(m, memory={k: m.memory[k] for k in ("flat", "grows")})
        for m in moments
    ]
    found = growth(moments, steps=10, settled=1)
    # Steps 1 and 2, and 8 and 9.
    assert found == {"flat": 1.0, "grows": pytest.approx(108.5 / 101.5)}


def test_lines_are_counted_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "curve"
    lines = lines_of(file)
    assert lines() == 0
    file.write_text("one\ntw")
    assert lines() == 1
    with file.open("a") as opened:
        opened.write("o\nthree\n")
    assert lines() == 3 == lines()


def test_blocks_of_the_vocabulary_need_a_fraction_of_the_memory_of_whole_logits() -> None:
    found = measure_loss(256)  # with more tokens the fraction is smaller still
    assert found["loss_mb_whole"] > 300
    assert found["loss_memory_ratio"] <= 0.25 and found["loss_difference"] <= 1e-5


@pytest.mark.slow
def test_trl_trains(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(conversations(config)))
    task: TRLTask = trl_task(config, Setting(1, 16, False), tmp_path)
    run = run_trl(task, tmp_path)
    assert len(run.done) == len(run.rewards) == 3
    assert run.seconds > 0 and all(0 < reward < 1 for reward in run.rewards)


@pytest.mark.slow
def test_both_sides_of_plain_torch_take_the_same_steps(tmp_path: Path) -> None:
    task = TorchTask(
        arm="ours",
        model_dir=str(make_tiny_model(tmp_path / "model")),
        precision="float32",
        threads=1,
        shared=True,
        prompts=2,
        group_size=3,
        prompt_tokens=(5, 9),
        response_tokens=(3, 6),
        micro_batch=4,
        token_budget=64,
        updates=3,
        answer="",
    )
    ours = run_arm(task, tmp_path)
    words = json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"]
    given = [batch(task, number, words) for number in range(3)]
    assert ours.tokens == [len(b.prompt_ids) + len(b.response_ids) for b in given[1:]]
    update = plain_update(task)
    assert ours.norms == pytest.approx([update(b) for b in given], rel=1e-3)
    assert min(ours.norms) > 0.1 and ours.peak_bytes > 1e8 and len(ours.seconds) == 2


def test_plain_torch_is_compared_by_tokens_a_second() -> None:
    rounds = {
        arm: [Measured((2.0, 4.0), (1.0, 1.0), (100, speed), 10**6, (1.0,) * 3)]
        for arm, speed in zip(ARMS, (200, 600, 400), strict=True)
    }
    found = summarize_torch(rounds)
    assert found["torch_arms"]["torch"] == {
        "tokens_per_s": 50.0,
        "tokens_per_cpu_s": 150.0,
        "peak_mb": 1.0,
    }
    assert found["train_vs_torch"] == 2.0 and found["train_vs_torch_alone"] == 1.5
