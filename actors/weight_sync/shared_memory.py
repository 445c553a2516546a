"""Memory that two processes of one node share: CUDA IPC on a GPU, a mapped file on a CPU."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from actors.weight_sync.transfer import TransferFailed

_SHM = "/dev/shm"
_DEVICE = 6
"""Position of the device's index among the arguments of torch's ``rebuild_cuda_tensor``."""


def memory_key(device: torch.device) -> str:
    """Processes with the same answer can open each other's memory."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return socket.gethostname()


@contextmanager
def export_memory(flat: Tensor) -> Iterator[bytes]:
    """A handle to the bytes for other processes, as long as the block lasts."""
    if flat.is_cuda:
        from torch.multiprocessing.reductions import reduce_tensor

        # The reader knows nothing of this process's streams.
        torch.cuda.current_stream(flat.device).synchronize()
        _, arguments = reduce_tensor(flat)
        yield pickle.dumps(arguments)
        return
    folder = _SHM if os.path.isdir(_SHM) else None
    with tempfile.NamedTemporaryFile(prefix="stepwiser-weights-", dir=folder) as file:
        file.truncate(len(flat))
        _mapped(file.name, len(flat)).copy_(flat)
        yield file.name.encode()


def import_memory(
    handles: Mapping[str, bytes], count: int, device: torch.device, on_gpu: bool = False
) -> Tensor:
    """The bytes behind the handle of this place, copied into memory of this process, of the GPU or
    of the host: uint8 [``count``].

    Raises TransferFailed when the learner has no process here.
    """
    handle = handles.get(memory_key(device))
    if handle is None:
        raise TransferFailed(
            f"no learner shares {memory_key(device)} with an engine: place them together "
            "(train.colocated), or set train.weight_transfer to nccl or object_store"
        )
    if device.type != "cuda":
        return _mapped(handle.decode(), count).clone()
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    arguments = list(pickle.loads(handle))
    # The same GPU may have another number in another process.
    arguments[_DEVICE] = device.index or 0
    there = rebuild_cuda_tensor(*arguments)
    if on_gpu:
        copy = torch.empty(count, dtype=torch.uint8, device=device)
    else:
        copy = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    copy.copy_(there)
    # The learner goes on as soon as it hears that this is done.
    torch.cuda.current_stream(device).synchronize()
    return copy


def _mapped(path: str, count: int) -> Tensor:
    return torch.from_file(path, shared=True, size=count, dtype=torch.uint8)
