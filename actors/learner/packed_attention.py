"""Attention of packed sequences on a GPU, without padding or masks, by an installed kernel.

The flash-attn package where it is there, else the kernel that PyTorch brings. Both know a sequence
by where its queries and its keys begin, and let a query see the keys up to its own place counted
from the end, so that a response sees all of its prompt. A kernel is tried against plain attention
before it is used; float32, a CPU, and whatever fails that trial get padded rows (`shared_prompt`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

logger = logging.getLogger(__name__)

PADDED = "padded rows"
TOLERANCE = 0.02
"""What bfloat16 may differ by from plain attention in float32, of values around 1."""


@dataclass(frozen=True)
class Packing:
    """Where each of S sequences has its N queries and K keys in all."""

    query_ends: Tensor
    """[S + 1] int32: 0, then the end of each sequence among the queries."""
    key_ends: Tensor
    """[S + 1] int32: the same among the keys."""
    keys: Tensor
    """[K] int64: flat index of each key; keys of a prompt stand before each of its responses'."""
    longest_query: int
    longest_key: int

    @classmethod
    def of(
        cls, prompt_lengths: Sequence[int], response_lengths: Sequence[int], parents: Sequence[int]
    ) -> Packing:
        """Of prompts that lie one after the other, and responses behind them."""
        lengths = torch.tensor([*prompt_lengths, *response_lengths])
        own = list(torch.arange(int(lengths.sum())).split(lengths.tolist()))
        count = len(prompt_lengths)
        seen = own[:count] + [
            torch.cat([own[parent], response])
            for parent, response in zip(parents, own[count:], strict=True)
        ]
        key_lengths = torch.tensor([len(keys) for keys in seen])
        return cls(
            query_ends=_ends(lengths),
            key_ends=_ends(key_lengths),
            keys=torch.cat(seen),
            longest_query=int(lengths.max()),
            longest_key=int(key_lengths.max()),
        )

    def to(self, device: torch.device) -> Packing:
        return Packing(
            self.query_ends.to(device),
            self.key_ends.to(device),
            self.keys.to(device),
            self.longest_query,
            self.longest_key,
        )


Kernel = Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]
"""Queries [N, H, D], keys and values [K, H or fewer, D] in the order of the packing, and the scale
of their products → [N, H, D]."""


def attend(
    kernel: Kernel, queries: Tensor, keys: Tensor, values: Tensor, packing: Packing, scale: float
) -> Tensor:
    """[N, H, D], of keys and values [N, H or fewer, D] as they lie in the flat row."""
    keys, values = (_Gather.apply(tensor, packing.keys) for tensor in (keys, values))
    return kernel(queries, keys, values, packing, scale)


class _Gather(torch.autograd.Function):
    """Rows by index. Gradients of a prompt's keys come from all its responses, and are summed in
    float32: bfloat16 would lose the small ones."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros((ctx.count, *gradient.shape[1:]), dtype=wide)
        return total.index_add_(0, index, gradient.to(wide)).to(gradient.dtype), None


@cache
def choose(kind: str, dtype: torch.dtype) -> tuple[str, Kernel | None]:
    """What computes attention on devices of a kind: its name, and None for padded rows."""
    fast = kind == "cuda" and dtype in (torch.bfloat16, torch.float16)
    name, kernel = first_right(_installed() if fast else [], torch.device(kind), dtype)
    logger.info("attention of packed sequences on %s: %s", kind, name)
    return name, kernel


def first_right(
    kernels: Sequence[tuple[str, Kernel]], device: torch.device, dtype: torch.dtype
) -> tuple[str, Kernel | None]:
    """The first that agrees with plain attention; padded rows where none does."""
    for name, kernel in kernels:
        try:
            gap = difference(kernel, device, dtype)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            logger.warning("%s cannot be used: %s", name, error)
            continue
        if gap <= TOLERANCE:
            return name, kernel
        logger.warning("%s is not used: it differs from attention by %.3g", name, gap)
    return PADDED, None


def _installed() -> list[tuple[str, Kernel]]:
    """The best one first."""
    found: list[tuple[str, Kernel]] = []
    if find_spec("flash_attn") is not None:
        found.append(("flash-attn", _flash_attn))
    if find_spec("torch.nn.attention.varlen") is not None:
        found.append(("PyTorch's varlen attention", _torch_varlen))
    return found


def _flash_attn(
    queries: Tensor, keys: Tensor, values: Tensor, packing: Packing, scale: float
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        queries,
        keys,
        values,
        packing.query_ends,
        packing.key_ends,
        packing.longest_query,
        packing.longest_key,
        softmax_scale=scale,
        causal=True,
    )


def _torch_varlen(
    queries: Tensor, keys: Tensor, values: Tensor, packing: Packing, scale: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters()
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {}
    if not options:
        options = {"is_causal": True}  # as it was called before 2.11
    if "scale" in known:
        options["scale"] = scale
    else:
        queries = queries * (scale * queries.shape[-1] ** 0.5)
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    elif repeats := queries.shape[1] // keys.shape[1] - 1:
        keys, values = (t.repeat_interleave(repeats + 1, dim=1) for t in (keys, values))
    return varlen_attn(
        queries,
        keys,
        values,
        packing.query_ends,
        packing.key_ends,
        packing.longest_query,
        packing.longest_key,
        **options,
    )


@cache
def _parameters() -> frozenset[str]:
    """Of PyTorch's kernel, which differ between its versions."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@torch.enable_grad()
def difference(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of outputs and gradients from plain attention, on a small packing."""
    generator = torch.Generator().manual_seed(0)
    packing = Packing.of([70, 3], [40, 1, 130], [0, 0, 1])
    rows = int(packing.query_ends[-1])

    def drawn(heads: int) -> Tensor:
        return torch.randn(rows, heads, 64, generator=generator)

    plain = [drawn(4), drawn(2), drawn(2)]
    slopes = drawn(4)
    given = [t.to(device, dtype).requires_grad_() for t in plain]
    found = attend(kernel, given[0], given[1], given[2], packing.to(device), 0.125)
    slopes = slopes.to(dtype)
    gradients = torch.autograd.grad((found * slopes.to(device)).sum(), given)
    wide = [t.detach().cpu().float().requires_grad_() for t in given]
    wanted = attend(plain_attention, wide[0], wide[1], wide[2], packing, 0.125)
    expected = torch.autograd.grad((wanted * slopes.float()).sum(), wide)
    pairs = [(found, wanted), *zip(gradients, expected, strict=True)]
    return max(
        ((own.cpu().float() - right).abs().max() / right.abs().max().clamp(min=1.0)).item()
        for own, right in pairs
    )


def plain_attention(
    queries: Tensor, keys: Tensor, values: Tensor, packing: Packing, scale: float
) -> Tensor:
    """A kernel that takes one sequence after the other: what others are held against."""
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(repeats, dim=1) for t in (keys, values))
    query_lengths, key_lengths = (
        ends.diff().tolist() for ends in (packing.query_ends, packing.key_ends)
    )
    parts = []
    for query, key, value in zip(
        queries.split(query_lengths), keys.split(key_lengths), values.split(key_lengths),
        strict=True,
    ):  # fmt: skip
        places = torch.arange(len(key), device=key.device)
        own = torch.arange(len(query), device=key.device) + len(key) - len(query)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        part = scaled_dot_product_attention(q, k, v, attn_mask=places <= own[:, None], scale=scale)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _ends(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
