"""Group-relative policy optimization of the judge: advantages and the clipped loss (paper: RL).

Shapes, as the signatures have them: ``G`` groups, ``n`` samples a group, ``B`` sequences, ``T``
response tokens, ``V`` words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
KLEstimator = Literal["k1", "k2", "k3"]

_MAX_LOG_RATIO = 20.0  # exp(20) is finite in every dtype used and far beyond every clip


@dataclass(frozen=True)
class GRPOLossConfig:
    """Constants of the loss; the defaults are the paper's.

    Raises:
        ValueError: a constant outside its range, named.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    """Larger than ``clip_low``: with equal clips all verdicts of a group soon agree."""
    aggregation: Aggregation = "token_mean"
    """``token_mean``: all tokens of the optimizer step weigh the same. ``sequence_mean``: all
    sequences do. ``constant_length``: token losses over a fixed length, so no length bias."""
    importance_cap: float | None = 2.0
    """Cap of the trainer/engine correction; ``None`` leaves the weights uncapped."""
    kl_coefficient: float = 0.0
    kl_estimator: KLEstimator = "k3"

    def __post_init__(self) -> None:
        if not 0.0 <= self.clip_low < 1.0:
            raise ValueError(f"clip_low must lie in 0..1 (1 excluded), got {self.clip_low}")
        if not (math.isfinite(self.clip_high) and self.clip_high >= 0.0):
            raise ValueError(f"clip_high must be at least 0, got {self.clip_high}")
        if self.aggregation not in ("token_mean", "sequence_mean", "constant_length"):
            raise ValueError(
                "aggregation must be token_mean, sequence_mean or constant_length, "
                f"got {self.aggregation!r}"
            )
        if self.importance_cap is not None and not self.importance_cap > 0.0:
            raise ValueError(f"importance_cap must be above 0 or None, got {self.importance_cap}")
        if not (math.isfinite(self.kl_coefficient) and self.kl_coefficient >= 0.0):
            raise ValueError(f"kl_coefficient must be at least 0, got {self.kl_coefficient}")
        if self.kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"kl_estimator must be k1, k2 or k3, got {self.kl_estimator!r}")


@dataclass(frozen=True)
class GRPOLossOutput:
    """The loss of one micro-batch and what to log about it."""

    loss: Float[Tensor, ""]
    """Scalar with a gradient; losses of the micro-batches of one step add up."""
    metrics: dict[str, float]
    """Means over the micro-batch's tokens; weigh them by ``tokens`` to combine micro-batches."""


def zero_variance(rewards: Num[Tensor, "G n"]) -> Bool[Tensor, " G"]:
    """Which groups have one and the same reward throughout.

    By equality, not by standard deviation, which rounding can leave above zero.
    """
    _check_rewards(rewards)
    return (rewards == rewards[:, :1]).all(dim=1)


def group_advantages(
    rewards: Num[Tensor, "G n"], *, normalize_std: bool = True, eps: float = 1e-4
) -> Float[Tensor, "G n"]:
    """Advantages within each group: (r − mean) / (sample std + eps).

    A group without variance gets exactly 0. ``normalize_std=False`` leaves the division out
    (Dr. GRPO).

    Raises:
        ValueError: not two-dimensional, a group of fewer than two, or a reward that is not finite.
    """
    _check_rewards(rewards)
    rewards = rewards.float() if not rewards.is_floating_point() else rewards
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if normalize_std:
        advantages = advantages / (rewards.std(dim=1, keepdim=True, correction=1) + eps)
    return advantages.masked_fill(zero_variance(rewards)[:, None], 0.0)


def loss_denominator(
    lengths: Sequence[int],
    config: GRPOLossConfig,
    max_response_length: int | None = None,
) -> float:
    """The denominator of an optimizer step, from the sequences of all its micro-batches and ranks.

    Handed to each ``grpo_loss``, it makes the micro-batches give the gradient of the one big batch.
    A trainer that averages gradients over ranks must multiply the loss by the number of ranks. The
    denominators of parts add up to that of the whole.

    Args:
        lengths: tokens of each sequence that are trained on, [B]; one of 0 counts nowhere.
        config: the loss.
        max_response_length: the constant of ``constant_length``, in tokens; unused otherwise.

    Raises:
        ValueError: ``constant_length`` without a positive ``max_response_length``.
    """
    if config.aggregation == "token_mean":
        return float(sum(lengths))
    sequences = float(sum(length > 0 for length in lengths))
    if config.aggregation == "sequence_mean":
        return sequences
    if max_response_length is None or max_response_length < 1:
        raise ValueError(
            "constant_length needs max_response_length of at least 1 token, "
            f"got {max_response_length}"
        )
    return sequences * max_response_length


def grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Num[Tensor, "B T"] | Bool[Tensor, "B T"],
    config: GRPOLossConfig,
    denominator: float | None = None,
    engine_logprobs: Float[Tensor, "B T"] | None = None,
    ref_logprobs: Float[Tensor, "B T"] | None = None,
) -> GRPOLossOutput:
    """Clipped surrogate loss of one micro-batch.

    Two ratios, kept apart (decoupled PPO, arXiv 2110.00641): exp(new − old) says how far the step
    has moved and is clipped; exp(old − engine) says how far the weights at its start are from
    those that sampled, by another kernel or, with a staleness bound above 0, by some updates, and
    corrects the token's weight. So a stale sample is not clipped for its age, and at the start of
    the step the gradient is that of tokens sampled by its own weights, up to the cap.

    Args:
        logprobs: of the sampled tokens under the weights being trained (gradient).
        old_logprobs: under the weights at the start of the step, by the same trainer.
        advantages: one a sequence.
        mask: non-zero where a token counts. A sequence masked throughout counts
            nowhere, in no denominator either; what stands at masked places is never read.
        config: the constants.
        denominator: ``loss_denominator`` of the whole optimizer step; by default this micro-batch's
            own (``constant_length`` has none).
        engine_logprobs: as the engine sampled them, token by token with the weights it then had.
            When given, token losses are weighted by w = exp(old − engine), detached and capped.
        ref_logprobs: of the reference model; needed when ``kl_coefficient`` > 0.

    Log-ratios are clamped to ±20. The KL penalty is not importance-weighted.

    Raises:
        ValueError: shapes that do not fit, a denominator not above 0, or no ``ref_logprobs`` where
            they are needed.
    """
    _check_shapes(logprobs, advantages, mask, old_logprobs, engine_logprobs, ref_logprobs)
    if config.kl_coefficient > 0.0 and ref_logprobs is None:
        raise ValueError(f"kl_coefficient={config.kl_coefficient} needs ref_logprobs, got None")
    if denominator is None:
        denominator = max(loss_denominator(mask.bool().sum(dim=1).tolist(), config), 1.0)
    if not (math.isfinite(denominator) and denominator > 0.0):
        raise ValueError(f"denominator must be above 0, got {denominator}")

    keep = mask.bool()
    new = _where(keep, logprobs)
    old = _where(keep, old_logprobs).detach()
    log_ratio = (new - old).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    advantage = advantages.detach().to(new.dtype)[:, None]
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    token_loss = -torch.minimum(ratio * advantage, clipped * advantage)

    statistics = {
        "clip_low": ((ratio < 1.0 - config.clip_low) & (advantage < 0.0)).to(new.dtype),
        "clip_high": ((ratio > 1.0 + config.clip_high) & (advantage > 0.0)).to(new.dtype),
        "ratio": ratio,
        "approx_kl": ratio - 1.0 - log_ratio,
    }
    peaks: dict[str, Tensor] = {}
    if engine_logprobs is not None:
        mismatch = (old - _where(keep, engine_logprobs).detach()).clamp(
            -_MAX_LOG_RATIO, _MAX_LOG_RATIO
        )
        raw_weight = mismatch.exp()
        weight = raw_weight
        if config.importance_cap is not None:
            weight = raw_weight.clamp(max=config.importance_cap)
        token_loss = token_loss * weight
        statistics["importance_weight"] = weight
        statistics["importance_capped"] = (raw_weight > weight).to(new.dtype)
        statistics["engine_logprob_error"] = mismatch.abs()
        peaks["importance_weight_max"] = (
            _where(keep, raw_weight).amax() if keep.numel() else new.sum()
        )
    if ref_logprobs is not None:
        kl = _kl(new, _where(keep, ref_logprobs).detach(), config.kl_estimator)
        statistics["kl"] = kl
        if config.kl_coefficient > 0.0:
            token_loss = token_loss + config.kl_coefficient * kl

    token_loss = _where(keep, token_loss)
    if config.aggregation == "sequence_mean":
        total = (token_loss.sum(dim=1) / keep.sum(dim=1).clamp(min=1)).sum()
    else:
        total = token_loss.sum()
    return GRPOLossOutput(total / denominator, _summarize(keep, statistics, peaks))


def token_logprobs(
    logits: Float[Tensor, "*BT V"], ids: Num[Tensor, "*BT"], temperature: float = 1.0
) -> Float[Tensor, "*BT"]:
    """Log-probs of given tokens at a sampling temperature; ``*BT``: sequences and tokens, or flat.

    ``logits[…, t, :]`` must be those that predict ``ids[…, t]``. Computed in float32: in bfloat16
    the ratio of two passes is off by more than the clip.

    Raises:
        ValueError: shapes that do not fit or a temperature not above 0.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit ids {tuple(ids.shape)}")
    scaled = _scale(logits, temperature)
    chosen = scaled.gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(dim=-1)


def entropy(logits: Float[Tensor, "*BT V"], temperature: float = 1.0) -> Float[Tensor, "*BT"]:
    """Entropy in nats of the next-token distribution, for logging.

    Without gradient. Raises ValueError for a temperature not above 0.
    """
    with torch.no_grad():
        log_p = _scale(logits, temperature).log_softmax(dim=-1)
        # A word of probability 0 adds 0, where 0 · −inf would be nan.
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)


def _scale(logits: Tensor, temperature: float) -> Tensor:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _kl(
    new: Float[Tensor, "B T"], ref: Float[Tensor, "B T"], estimator: KLEstimator
) -> Float[Tensor, "B T"]:
    """Estimates of KL(new ‖ ref) from sampled tokens."""
    difference = (new - ref).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return (-difference).exp() + difference - 1.0


def _where(keep: Tensor, values: Tensor) -> Tensor:
    """Masked places become 0 before any arithmetic, so that nan or inf there cannot spread."""
    return torch.where(keep, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _summarize(
    keep: Tensor, statistics: dict[str, Tensor], peaks: dict[str, Tensor]
) -> dict[str, float]:
    with torch.no_grad():
        tokens = keep.sum()
        means = {
            name: _where(keep, value).sum() / tokens.clamp(min=1)
            for name, value in statistics.items()
        }
        named = {"tokens": tokens, "sequences": keep.any(dim=1).sum(), **means, **peaks}
        # One transfer from the device instead of one a metric.
        numbers = torch.stack([value.detach().double() for value in named.values()]).tolist()
    return dict(zip(named, numbers, strict=True))


def _check_rewards(rewards: Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards must be [groups, samples] with 2 samples or more, got {tuple(rewards.shape)}"
        )
    if not torch.isfinite(rewards).all():
        raise ValueError(
            f"rewards must be finite, got {rewards[~torch.isfinite(rewards)].tolist()}"
        )


def _check_shapes(logprobs: Tensor, advantages: Tensor, *others: Tensor | None) -> None:
    if logprobs.dim() != 2:
        raise ValueError(f"logprobs must be [B, T], got {tuple(logprobs.shape)}")
    for tensor in others:
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(
                "log-probs and mask must have one shape, "
                f"got {tuple(tensor.shape)} beside {tuple(logprobs.shape)}"
            )
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages must be [B] = [{logprobs.shape[0]}], got {tuple(advantages.shape)}"
        )
