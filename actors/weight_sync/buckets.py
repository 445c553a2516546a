"""Buckets: some tensors as one flat run of bytes, and a safetensors header that says what they are.

A header and its bytes are what a safetensors file consists of, so every way of transfer carries the
same two things, and a copy of them can be loaded like any other weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}

Spec = tuple[str, torch.dtype, tuple[int, ...]]
"""Name, type and shape of a tensor."""


def header(specs: Sequence[Spec]) -> bytes:
    """The header of a bucket, whose bytes `pack` puts together in the same order.

    Wider types come first, so that every tensor begins at a multiple of its element size.
    """
    entries, begin = {}, 0
    for name, dtype, shape in specs:
        end = begin + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
        begin = end
    return json.dumps(entries).encode()


def split(
    parameters: Sequence[tuple[str, torch.nn.Parameter]], bucket_bytes: int
) -> Iterator[list[tuple[str, torch.nn.Parameter]]]:
    """Consecutive parameters in buckets of at most so many bytes, or of one that has more."""
    bucket: list[tuple[str, torch.nn.Parameter]] = []
    size = 0
    for name, parameter in parameters:
        # Under ZeRO-3 numel() of a partitioned parameter is 0; ds_numel is its real size.
        bytes_here = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if bucket and size + bytes_here > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += bytes_here
    if bucket:
        yield bucket


def weight_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Of the whole weight, also where ZeRO-3 has left a share."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all tensors, one after the other: uint8 [N] on their device."""
    return torch.cat([tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors])


def size(head: bytes) -> int:
    """Bytes of a bucket."""
    return max(entry["data_offsets"][1] for entry in json.loads(head).values())


def unpack(head: bytes, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a bucket by name, as a view of its bytes."""
    for name, entry in json.loads(head).items():
        begin, end = entry["data_offsets"]
        yield name, flat[begin:end].view(_TYPES[entry["dtype"]]).view(entry["shape"])


def blob(head: bytes, flat: Tensor) -> bytes:
    """A bucket in host memory as the content of a safetensors file."""
    padded = head.ljust(-(-len(head) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded + flat.numpy().tobytes()


def begin_to_host(flat: Tensor) -> Callable[[], Tensor]:
    """`to_host` beside what the GPU does meanwhile; what is returned waits for the copy.

    Until then the bytes must stay as they are.
    """
    if not flat.is_cuda:
        return lambda: flat
    copy = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    stream = torch.cuda.Stream(flat.device)
    stream.wait_stream(torch.cuda.current_stream(flat.device))
    with torch.cuda.stream(stream):
        copy.copy_(flat, non_blocking=True)
    flat.record_stream(stream)  # its memory is nobody else's before that

    def finished() -> Tensor:
        stream.synchronize()
        return copy

    return finished


def to_host(flat: Tensor) -> Tensor:
    """A copy in host memory, pinned for speed; what is there already stays where it is."""
    if not flat.is_cuda:
        return flat
    copy = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    copy.copy_(flat)
    return copy
