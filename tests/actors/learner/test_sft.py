"""Supervised fine-tuning jobs on a real Ray Train worker group with DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from actors.learner.sft import SFTJob, SFTOptions, epoch_batches, run_sft
from actors.learner.worker_group import WorkerGroup
from stepwiser.errors import UserError
from stepwiser.run.metrics_file import read_metrics
from stepwiser.training.experience import TokenExamples
from stepwiser.training.schedule import LearningRate
from tests.support.tiny import make_tiny_model


def test_epochs_are_shuffled_whole_and_repeatable():
    batches = epoch_batches(10, 4, epoch=1, seed=3)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(10))
    assert batches == epoch_batches(10, 4, epoch=1, seed=3)
    assert batches != epoch_batches(10, 4, epoch=2, seed=3)


def _examples(seed: int, count: int = 24) -> TokenExamples:
    """The learned half repeats a fixed rule; the masked half is noise that must not be learned."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        length = int(rng.integers(3, 12))
        noise = rng.integers(100, 400, length)
        pairs.append(([*noise, *range(10, 10 + length)], [0] * length + [1] * length))
    return TokenExamples.from_pairs(pairs)


def _losses(directory: str, examples: TokenExamples) -> tuple[float, float]:
    """Mean loss of learned and of masked tokens, one example at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    sums = {0: [], 1: []}
    with torch.no_grad():
        for ids, mask in map(examples.example, range(len(examples))):
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            logprobs = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
            picked = -logprobs.gather(1, tokens[0, 1:, None])[:, 0]
            for learned in (0, 1):
                sums[learned] += picked[torch.from_numpy(mask[1:] == learned)].tolist()
    return float(np.mean(sums[1])), float(np.mean(sums[0]))


@pytest.mark.slow
def test_two_jobs_in_one_group_of_bfloat16_zero_3_ranks(ray_local, tmp_path):
    base = str(make_tiny_model(tmp_path / "base", hidden_size=256))
    path = tmp_path / "examples.parquet"
    _examples(0).write_parquet(path)
    shared = {
        "model_dir": base,
        "learning_rate": LearningRate(1e-3, warmup_steps=2),
        "batch_size": 7,
        "epochs": 3,
        "weight_decay": 0.0,
        "seed": 0,
    }
    jobs = [
        SFTJob("plain", output_dir=str(tmp_path / "plain"), examples=str(path), steps=5, **shared),
        SFTJob(
            "best",
            output_dir=str(tmp_path / "best"),
            examples=ray.put(_examples(0)),
            steps=None,
            evaluation=ray.put(_examples(1, count=5)),
            **shared,
        ),
    ]
    options = SFTOptions(
        group=WorkerGroup(
            name="sft",
            storage_path=str(tmp_path / "checkpoints"),
            num_workers=2,
            zero_stage=3,
            precision="bfloat16",
            gradient_checkpointing=True,
            max_tokens_per_microbatch=64,
            max_failures=0,
        ),
        metrics_path=str(tmp_path / "metrics.jsonl"),
        checkpoint_every=4,
    )
    seen = []
    plain, best = run_sft(jobs, options, seen.append)

    assert (plain.steps, plain.heldout_loss) == (5, None)
    assert best.steps == 3 * 4
    curve = read_metrics(options.metrics_path, "sft", "best")
    assert [line["step"] for line in curve] == list(range(12))
    assert [line["name"] for line in seen] == ["plain"] * 5 + ["best"] * 12
    heldout = [line["heldout_loss"] for line in curve if "heldout_loss" in line]
    assert len(heldout) == 3
    assert best.heldout_loss == min(heldout)
    assert best.trained_tokens == 3 * int(_examples(0).lengths.sum())

    before = _losses(base, _examples(1))
    after = _losses(best.output_dir, _examples(1))
    assert after[0] < before[0] - 2
    assert after[1] > before[1] - 0.5
    assert _losses(best.output_dir, _examples(1, count=5))[0] == pytest.approx(
        best.heldout_loss, abs=0.05
    )
    assert (Path(best.output_dir) / "tokenizer.json").exists()
    assert not Path(f"{best.output_dir}.best").exists()

    # A finished run is not done again; other jobs under its name are refused.
    assert run_sft(jobs, options) == [plain, best]
    with pytest.raises(UserError, match="already holds a run 'sft' of other jobs"):
        run_sft(jobs[:1], options)
