"""The GRPO loss against hand-computed values, against autograd identities and against TRL."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepwiser.training.grpo import (
    GRPOLossConfig,
    entropy,
    group_advantages,
    grpo_loss,
    loss_denominator,
    token_logprobs,
    zero_variance,
)

torch.manual_seed(0)


def _lengths(mask: Tensor) -> list[int]:
    return mask.bool().sum(dim=1).tolist()


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    # Mean .25, sample std sqrt((.75² + 3 · .25²) / 3) = .5.
    want = torch.tensor([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-4)
    got = group_advantages(rewards)
    assert torch.allclose(got[0], want)
    assert got[1].tolist() == [0.0] * 4
    plain = group_advantages(rewards, normalize_std=False)
    assert plain[0].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_zero_variance_is_equality() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1000001], [0.0, 1.0, 0.0]])
    assert zero_variance(rewards).tolist() == [True, False, False]
    assert group_advantages(rewards)[0].tolist() == [0.0, 0.0, 0.0]


def test_integer_rewards() -> None:
    assert group_advantages(torch.tensor([[1, 0]]))[0, 0] == pytest.approx(0.7070068, abs=1e-5)


@pytest.mark.parametrize(
    "rewards", [torch.zeros(4), torch.zeros(4, 1), torch.tensor([[0.0, math.nan]])]
)
def test_advantages_refuse(rewards: Tensor) -> None:
    with pytest.raises(ValueError, match="rewards must be"):
        group_advantages(rewards)


def one_token(ratio: float, advantage: float, **config: Any) -> tuple[float, float]:
    """Loss and d loss / d logprob of a single token with this ratio."""
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    out = grpo_loss(logprob, zero, torch.tensor([advantage]), one, GRPOLossConfig(**config))
    out.loss.backward()
    return out.loss.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # within 1.28: the upper clip is the wider one
        (1.3, 2.0, -2.56, 0.0),  # clipped at 1.28
        (1.3, -2.0, 2.6, 2.6),  # a bad token that grew is always pushed down
        (0.79, -2.0, 1.6, 0.0),  # clipped at .8
        (0.79, 2.0, -1.58, -1.58),
        (0.85, -2.0, 1.7, 1.7),
    ],
)
def test_asymmetric_clip_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    assert one_token(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-5)


def test_log_ratio_is_clamped() -> None:
    loss, gradient = one_token(math.exp(50.0), -1.0)
    assert loss == pytest.approx(math.exp(20.0), rel=1e-5)
    assert gradient == 0.0


# Two sequences of 3 and 1 tokens at ratio 1, advantages 1 and −2; token losses −1, −1, −1 and 2.
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
ADVANTAGES = torch.tensor([1.0, -2.0, 5.0])


@pytest.mark.parametrize(
    ("aggregation", "denominator", "loss"),
    [
        ("token_mean", None, -1 / 4),
        ("token_mean", 8.0, -1 / 8),
        ("sequence_mean", None, (-1 + 2) / 2),  # the masked sequence is not among the two
        ("sequence_mean", 4.0, (-1 + 2) / 4),
        ("constant_length", 20.0, -1 / 20),
    ],
)
def test_aggregations_by_hand(aggregation: Any, denominator: float | None, loss: float) -> None:
    zeros = torch.zeros(3, 4)
    config = GRPOLossConfig(aggregation=aggregation)
    out = grpo_loss(zeros, zeros, ADVANTAGES, MASK, config, denominator)
    assert out.loss.item() == pytest.approx(loss)
    assert (out.metrics["tokens"], out.metrics["sequences"]) == (4.0, 2.0)


def test_denominators_by_hand() -> None:
    assert loss_denominator(_lengths(MASK), GRPOLossConfig()) == 4.0
    assert loss_denominator(_lengths(MASK), GRPOLossConfig(aggregation="sequence_mean")) == 2.0
    constant = GRPOLossConfig(aggregation="constant_length")
    assert loss_denominator(_lengths(MASK), constant, max_response_length=10) == 20.0
    with pytest.raises(ValueError, match="max_response_length"):
        loss_denominator(_lengths(MASK), constant)


def test_masked_places_are_never_read() -> None:
    logprobs = torch.zeros(3, 4).masked_fill(MASK == 0, math.nan).requires_grad_()
    bad = torch.zeros(3, 4).masked_fill(MASK == 0, -math.inf)
    config = GRPOLossConfig(kl_coefficient=0.1)
    out = grpo_loss(logprobs, bad, ADVANTAGES, MASK, config, None, bad, bad)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-0.25)
    assert torch.equal(logprobs.grad != 0, MASK != 0)
    assert all(math.isfinite(value) for value in out.metrics.values())


def test_everything_masked_is_zero_with_a_gradient() -> None:
    logprobs = torch.zeros(2, 3, requires_grad=True)
    out = grpo_loss(logprobs, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3), GRPOLossConfig())
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert not logprobs.grad.any()


def test_importance_weights_by_hand() -> None:
    old, one = torch.zeros(1, 3), torch.ones(1, 3)
    engine = -torch.tensor([[0.5, 3.0, 1.0]]).log()  # w = .5, 3, 1
    new = torch.zeros(1, 3, requires_grad=True)
    out = grpo_loss(new, old, torch.ones(1), one, GRPOLossConfig(), None, engine)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-(0.5 + 2 + 1) / 3)
    assert torch.allclose(new.grad, -torch.tensor([[0.5, 2.0, 1.0]]) / 3)
    assert out.metrics["importance_weight"] == pytest.approx(3.5 / 3)
    assert out.metrics["importance_capped"] == pytest.approx(1 / 3)
    assert out.metrics["importance_weight_max"] == pytest.approx(3.0)
    uncapped = GRPOLossConfig(importance_cap=None)
    out = grpo_loss(new, old, torch.ones(1), one, uncapped, None, engine)
    assert out.loss.item() == pytest.approx(-(0.5 + 3 + 1) / 3)
    assert out.metrics["importance_capped"] == 0.0


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [("k1", 0.3, 1.0), ("k2", 0.045, 0.3), ("k3", math.exp(-0.3) + 0.3 - 1, 1 - math.exp(-0.3))],
)
def test_kl_by_hand(estimator: Any, value: float, gradient: float) -> None:
    new = torch.tensor([[-1.0]], requires_grad=True)
    config = GRPOLossConfig(kl_coefficient=0.5, kl_estimator=estimator)
    ref, one = torch.tensor([[-1.3]]), torch.ones(1, 1)
    out = grpo_loss(new, new.detach(), torch.zeros(1), one, config, ref_logprobs=ref)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(0.5 * value, abs=1e-6)
    assert new.grad.item() == pytest.approx(0.5 * gradient, abs=1e-6)
    assert out.metrics["kl"] == pytest.approx(value, abs=1e-6)


def test_metrics_by_hand() -> None:
    ratios = torch.tensor([[1.5, 1.0], [0.5, 1.5]])
    out = grpo_loss(
        ratios.log(),
        torch.zeros(2, 2),
        torch.tensor([1.0, -1.0]),
        torch.ones(2, 2),
        GRPOLossConfig(),
    )
    assert out.metrics["clip_high"] == 0.25
    assert out.metrics["clip_low"] == 0.25
    assert out.metrics["ratio"] == pytest.approx(4.5 / 4)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 1.0, 0.5, 1.5)) / 4
    assert out.metrics["approx_kl"] == pytest.approx(kl, abs=1e-6)


def random_batch(sequences: int = 6, length: int = 7, seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(sequences, length, generator=g) * 3
    lengths = torch.randint(1, length + 1, (sequences,), generator=g)

    def near(scale: float) -> Tensor:
        return old + torch.randn(sequences, length, generator=g) * scale

    return {
        "logprobs": near(0.4),
        "old_logprobs": old,
        "engine_logprobs": near(0.5),
        "ref_logprobs": near(0.3),
        "advantages": torch.randn(sequences, generator=g),
        "mask": (torch.arange(length)[None] < lengths[:, None]).long(),
    }


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant_length"])
def test_micro_batches_give_the_gradient_of_the_whole(aggregation: Any) -> None:
    config = GRPOLossConfig(aggregation=aggregation, kl_coefficient=0.1)
    batch = random_batch()
    batch["mask"][4] = 0  # a fully masked sequence must not shift the mean
    total = loss_denominator(_lengths(batch["mask"]), config, max_response_length=9)

    def gradient(parts: list[slice]) -> tuple[float, Tensor]:
        logprobs = batch["logprobs"].clone().requires_grad_()
        loss = 0.0
        for part in parts:
            rest = {k: v[part] for k, v in batch.items() if k != "logprobs"}
            out = grpo_loss(logprobs[part], config=config, denominator=total, **rest)
            out.loss.backward()
            loss += out.loss.item()
        return loss, logprobs.grad

    whole = gradient([slice(0, 6)])
    split = gradient([slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)])
    assert split[0] == pytest.approx(whole[0], abs=1e-6)
    assert torch.allclose(split[1], whole[1], atol=1e-7)
    denominators = [
        loss_denominator(_lengths(batch["mask"][p]), config, 9) for p in (slice(0, 2), slice(2, 6))
    ]
    assert sum(denominators) == total


class _Accelerator:
    num_processes = 1

    @staticmethod
    def reduce(x: Tensor, reduction: str) -> Tensor:
        return x

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        return x


def trl_loss(
    batch: dict[str, Tensor],
    logprobs: Tensor,
    loss_type: str,
    max_length: int,
    beta: float,
    cap: float | None,
    tokens: float | None = None,
) -> tuple[Tensor, dict[str, list[float]]]:
    """TRL's own ``_compute_loss`` on tensors: a trainer with nothing behind it but its fields.

    ``tokens``: of the whole optimizer step, where the batch is a part of it.
    """
    from trl import GRPOTrainer

    metrics: dict[str, Any] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, logprobs.detach(), None),
        _metrics=metrics,
        _entropy_bonus_enabled=False,
        accelerator=_Accelerator(),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_high=0.28,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=max_length,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=True,
    )
    mask = batch["mask"]
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["old_logprobs"],
        "ref_per_token_logps": batch["ref_logprobs"],
        "num_items_in_batch": mask.sum() if tokens is None else torch.tensor(tokens),
    }
    if cap is not None:
        weight = (batch["old_logprobs"] - batch["engine_logprobs"]).exp()
        inputs["importance_sampling_ratio"] = weight.clamp(max=cap)
    return GRPOTrainer._compute_loss(trainer, None, inputs), metrics["train"]


@pytest.mark.slow  # TRL pulls in vLLM when it is imported
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize(
    ("aggregation", "loss_type"),
    [("token_mean", "dapo"), ("sequence_mean", "grpo"), ("constant_length", "dr_grpo")],
)
def test_same_loss_and_gradient_as_trl(
    aggregation: Any, loss_type: str, beta: float, cap: float | None
) -> None:
    pytest.importorskip("trl")
    config = GRPOLossConfig(aggregation=aggregation, kl_coefficient=beta)
    for seed in range(5):
        batch = random_batch(seed=seed)
        theirs = batch["logprobs"].clone().requires_grad_()
        want, their_metrics = trl_loss(batch, theirs, loss_type, 9, beta, cap)
        want.backward()
        ours = batch["logprobs"].clone().requires_grad_()
        got = grpo_loss(
            ours,
            batch["old_logprobs"],
            batch["advantages"],
            batch["mask"],
            config,
            loss_denominator(_lengths(batch["mask"]), config, max_response_length=9),
            engine_logprobs=None if cap is None else batch["engine_logprobs"],
            ref_logprobs=batch["ref_logprobs"],
        )
        got.loss.backward()
        assert got.loss.item() == pytest.approx(want.item(), abs=1e-6)
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
        assert got.metrics["clip_low"] == pytest.approx(their_metrics["clip_ratio/low_mean"][0])
        assert got.metrics["clip_high"] == pytest.approx(their_metrics["clip_ratio/high_mean"][0])
        if beta:
            assert got.metrics["kl"] == pytest.approx(their_metrics["kl"][0], abs=1e-6)


@pytest.mark.slow
def test_tokens_of_one_global_step_weigh_the_same_as_in_trl() -> None:
    pytest.importorskip("trl")
    batch, config = random_batch(sequences=8, seed=11), GRPOLossConfig()
    batch["mask"][5] = 0  # a masked sequence, then a group of which nothing is left
    batch["mask"][6:] = 0
    total = loss_denominator(_lengths(batch["mask"]), config)
    theirs, ours = (batch["logprobs"].clone().requires_grad_() for _ in range(2))
    for part in (slice(0, 1), slice(1, 4), slice(4, 8)):
        rest = {name: tensor[part] for name, tensor in batch.items()}
        trl_loss(rest, theirs[part], "dapo", 9, 0.0, 2.0, total)[0].backward()
        old, engine = rest["old_logprobs"], rest["engine_logprobs"]
        advantages, mask = rest["advantages"], rest["mask"]
        grpo_loss(ours[part], old, advantages, mask, config, total, engine).loss.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert ours.grad[:5].any() and not ours.grad[5:].any()


@pytest.mark.slow
def test_deviation_log_probs_and_entropy_are_those_of_trl() -> None:
    pytest.importorskip("trl")
    from trl.trainer.utils import entropy_from_logits, nanstd, selective_log_softmax

    rewards = torch.randint(0, 2, (20, 8)).float()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    scaled = centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    assert torch.allclose(group_advantages(rewards), scaled, atol=1e-6)
    assert torch.allclose(group_advantages(rewards, normalize_std=False), centred)
    logits, ids = torch.randn(3, 5, 13), torch.randint(0, 13, (3, 5))
    assert torch.allclose(token_logprobs(logits, ids), selective_log_softmax(logits, ids))
    assert torch.allclose(entropy(logits), entropy_from_logits(logits), atol=1e-6)


def test_a_stale_sample_is_corrected_and_not_clipped_for_its_age() -> None:
    """Engine's weights gave .2, those at the start of the step .3: a ratio of 1.5, above the clip.

    At ratio new/old = 1 nothing is clipped, and the token weighs 1.5 times; had the ratio been
    taken to the engine's weights, its gradient would be 0.
    """
    new = torch.tensor([[0.3]]).log().requires_grad_()
    engine, one = torch.tensor([[0.2]]).log(), torch.ones(1, 1)
    out = grpo_loss(new, new.detach(), torch.ones(1), one, GRPOLossConfig(), None, engine)
    out.loss.backward()
    assert new.grad.item() == pytest.approx(-1.5)
    assert out.metrics["clip_high"] == 0.0
    coupled = new.detach().requires_grad_()
    grpo_loss(coupled, engine, torch.ones(1), one, GRPOLossConfig()).loss.backward()
    assert coupled.grad.item() == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_token_logprobs_and_entropy(temperature: float) -> None:
    logits = torch.randn(2, 3, 11)
    ids = torch.randint(0, 11, (2, 3))
    table = torch.log_softmax(logits / temperature, dim=-1)
    want = torch.stack([torch.stack([table[b, t, ids[b, t]] for t in range(3)]) for b in range(2)])
    assert torch.allclose(token_logprobs(logits, ids, temperature), want, atol=1e-6)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    assert torch.allclose(entropy(logits, temperature), distribution.entropy(), atol=1e-6)


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(1, 4, 50, dtype=torch.bfloat16) * 5
    ids = torch.randint(0, 50, (1, 4))
    got = token_logprobs(logits, ids)
    assert got.dtype == torch.float32
    assert torch.allclose(got, token_logprobs(logits.double(), ids).float(), atol=1e-5)


def test_entropy_with_forbidden_words() -> None:
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]])
    assert entropy(logits).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_low": 1.0},
        {"clip_low": -0.1},
        {"clip_high": -0.1},
        {"clip_high": math.nan},
        {"aggregation": "mean"},
        {"importance_cap": 0.0},
        {"kl_coefficient": -1.0},
        {"kl_estimator": "k4"},
    ],
)
def test_bad_constants_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        GRPOLossConfig(**fields)


def test_bad_tensors() -> None:
    zeros, ones, config = torch.zeros(2, 3), torch.ones(2, 3), GRPOLossConfig()
    with pytest.raises(ValueError, match="one shape"):
        grpo_loss(zeros, torch.zeros(2, 4), torch.ones(2), ones, config)
    with pytest.raises(ValueError, match="advantages"):
        grpo_loss(zeros, zeros, torch.ones(3), ones, config)
    with pytest.raises(ValueError, match=r"denominator must be above 0, got 0"):
        grpo_loss(zeros, zeros, torch.ones(2), ones, config, 0.0)
    with pytest.raises(ValueError, match="ref_logprobs"):
        grpo_loss(zeros, zeros, torch.ones(2), ones, GRPOLossConfig(kl_coefficient=0.1))
    with pytest.raises(ValueError, match="max_response_length"):
        grpo_loss(zeros, zeros, torch.ones(2), ones, GRPOLossConfig(aggregation="constant_length"))
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1), 0.0)
    with pytest.raises(ValueError, match="do not fit"):
        token_logprobs(torch.zeros(1, 2, 2), torch.zeros(1, 1))
