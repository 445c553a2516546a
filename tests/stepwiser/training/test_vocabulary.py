"""Log-probs by blocks of the vocabulary against those of whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepwiser.run.memory import processes
from stepwiser.training import vocabulary
from stepwiser.training.grpo import entropy, token_logprobs
from stepwiser.training.vocabulary import vocabulary_logprobs

TOKENS, WIDTH, WORDS = 30, 16, 1000


def _drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(WORDS, WIDTH, dtype=dtype, requires_grad=True)
    # The first and the last word, and one on either side of a block's end.
    ids = torch.cat([torch.tensor([0, 255, 256, WORDS - 1]), torch.randint(WORDS, (TOKENS - 4,))])
    return hidden, weight, ids, torch.randn(TOKENS, dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1.6e-2)]
)
def test_blocks_add_up(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, rtol: float, temperature: float, blocks: int
) -> None:
    numbers = TOKENS * WORDS if blocks == 1 else 1
    monkeypatch.setitem(vocabulary.BLOCK_NUMBERS, "cpu", numbers)
    hidden, weight, ids, slopes = _drawn(dtype)
    assert len(list(vocabulary._blocks(weight, TOKENS))) == blocks
    found, entropies = vocabulary_logprobs(hidden, weight, ids, temperature)
    logits = hidden @ weight.T
    wanted = token_logprobs(logits, ids, temperature)
    # The logits are rounded alike, so bfloat16 shows in the gradients alone.
    close = {"rtol": min(rtol, 1e-4), "atol": min(rtol, 1e-4)}
    torch.testing.assert_close(found, wanted, **close)
    torch.testing.assert_close(entropies, entropy(logits, temperature), **close)
    assert found.dtype == wanted.dtype and not entropies.requires_grad
    ours = torch.autograd.grad((found * slopes).sum(), (hidden, weight))
    theirs = torch.autograd.grad((wanted * slopes).sum(), (hidden, weight))
    for own, plain in zip(ours, theirs, strict=True):
        scale = float(plain.abs().max())
        torch.testing.assert_close(own, plain, rtol=rtol, atol=rtol * scale)


def test_frozen_weights_get_no_gradient() -> None:
    hidden, weight, ids, _ = _drawn(torch.float32)
    frozen = weight.detach()
    vocabulary_logprobs(hidden, frozen, ids)[0].sum().backward()
    wanted = token_logprobs(hidden.detach().requires_grad_() @ frozen.T, ids)
    assert frozen.grad is None and hidden.grad is not None and wanted.requires_grad


def test_logits_far_from_zero_stay_finite() -> None:
    weight = torch.eye(4) * 1e4
    found, entropies = vocabulary_logprobs(torch.eye(4), weight, torch.tensor([0, 1, 2, 0]))
    assert found.tolist() == [0.0, 0.0, 0.0, -1e4] and entropies.tolist() == [0.0] * 4


def test_the_memory_plan_knows_the_blocks() -> None:
    assert vocabulary.BLOCK_NUMBERS == {
        "cpu": processes.LOGIT_BLOCK,
        "cuda": processes.LOGIT_BLOCK_GPU,
    }
    assert vocabulary.LEAST_WORDS == processes.LEAST_WORDS


def test_a_temperature_of_zero_is_refused() -> None:
    hidden, weight, ids, _ = _drawn(torch.float32)
    with pytest.raises(ValueError, match="above 0"):
        vocabulary_logprobs(hidden, weight, ids, 0.0)
