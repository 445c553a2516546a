"""Products with adapters, held against vLLM's own and against the definition."""

from __future__ import annotations

import pytest
import torch

from actors.engine import adapter_kernels

TOKENS, WIDE, RANK, OUT = 12, 16, 4, 10


@pytest.fixture
def theirs():
    lora_ops = pytest.importorskip("vllm.lora.ops.torch_ops.lora_ops")
    if lora_ops.bgmv_shrink.__module__ != lora_ops.__name__:
        pytest.skip("an engine of this process has put ours in their place")
    return lora_ops


def _draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indices", [[1] * TOKENS, [0, 1, 2, 1] * 3])
def test_they_are_vllms(theirs, dtype, indices) -> None:
    index = torch.tensor(indices)
    x, a, b = _draw(TOKENS, WIDE, dtype=dtype), _draw(3, 1, RANK, WIDE, dtype=dtype), None
    found, wanted = (torch.ones(TOKENS, RANK + 2) for _ in range(2))
    adapter_kernels.bgmv_shrink(x, a, found, index, 0.5)
    theirs.bgmv_shrink(x, a, wanted, index, 0.5)
    torch.testing.assert_close(found, wanted)
    assert (found[:, RANK:] == 1).all(), "columns beyond the rank are not touched"
    small = found[:, :RANK].contiguous()
    b = _draw(3, 1, OUT, RANK, dtype=dtype)
    for add in (True, False):
        base = _draw(TOKENS, OUT, dtype=dtype)
        found, wanted = base.clone(), base.clone()
        adapter_kernels.bgmv_expand(small, b, found, index, add)
        theirs.bgmv_expand(small, b, wanted, index, add)
        torch.testing.assert_close(found, wanted)
        base = _draw(TOKENS, OUT + 6, dtype=dtype)
        found, wanted = base.clone(), base.clone()
        adapter_kernels.bgmv_expand_slice(small, b, found, index, 3, OUT, add)
        theirs.bgmv_expand_slice(small, b, wanted, index, 3, OUT, add)
        torch.testing.assert_close(found, wanted)


def test_a_token_without_an_adapter_gets_nothing() -> None:
    index = torch.tensor([-1, 0, -1, 1])
    x, a, b = _draw(4, WIDE), _draw(2, 1, RANK, WIDE), _draw(2, 1, OUT, RANK)
    small, out = torch.ones(4, RANK), torch.zeros(4, OUT)
    adapter_kernels.bgmv_shrink(x, a, small, index)
    adapter_kernels.bgmv_expand(small, b, out, index)
    for token, adapter in enumerate(index.tolist()):
        wanted = torch.zeros(OUT) if adapter < 0 else b[adapter, 0] @ (a[adapter, 0] @ x[token])
        torch.testing.assert_close(out[token], wanted)
