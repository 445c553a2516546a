"""Products with LoRA's factors on a CPU, one matrix product for each adapter in the batch.

vLLM's own copy an adapter's factor for every token before they multiply: with 96 sequences of a
0.5B model 94% of an engine's time. Arguments are those of `vllm.lora.ops.torch_ops.lora_ops`, in
whose place these are put (`vllm_internals.take_adapter_kernels`). Tokens of index -1 have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    Rows: TypeAlias = Tensor | slice


def bgmv_shrink(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor,
    scaling: float = 1.0,
) -> None:  # fmt: skip
    """``output[t, :r] = scaling * A[index[t]] @ inputs[t]``: inputs [t, d], A [n, 1, r, d]."""
    rank = lora_b_weights.shape[-2]
    output_tensor[: len(inputs), :rank] = 0
    for index, rows in _adapters(lora_indices_tensor):
        product = _product(inputs, lora_b_weights, output_tensor, index, rows)
        output_tensor[: len(inputs), :rank][rows] = scaling * product


def bgmv_expand(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor,
    add_inputs: bool = True,
) -> None:  # fmt: skip
    """``output[t] += B[index[t]] @ inputs[t]``: inputs [t, r], B [n, 1, o, r]; the part that both
    have, where vLLM has padded either."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    _expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, slice(0, width), add_inputs)


def bgmv_expand_slice(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor,
    slice_offset: int, slice_size: int, add_inputs: bool = True,
) -> None:  # fmt: skip
    """`bgmv_expand` into ``slice_size`` columns of the output from ``slice_offset`` on."""
    columns = slice(slice_offset, slice_offset + slice_size)
    _expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, columns, add_inputs)


def _expand(
    inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, columns: slice, add: bool
) -> None:
    part = output[: len(inputs), columns]
    if not add:
        part.zero_()
    for index, rows in _adapters(indices):
        part[rows] += _product(inputs, weights, output, index, rows)[:, : part.shape[1]]


def _product(inputs: Tensor, weights: Tensor, output: Tensor, index: int, rows: Rows) -> Tensor:
    factor = weights[index].flatten(0, -2).to(output.dtype)
    return inputs[rows].to(output.dtype) @ factor.T


def _adapters(indices: Tensor) -> Iterator[tuple[int, Rows]]:
    """Each adapter of a batch and its tokens; all of them mostly."""
    present = indices.unique().tolist()
    for index in present:
        if index >= 0:
            yield index, slice(None) if len(present) == 1 else (indices == index).nonzero()[:, 0]
