"""An engine worker's end of a transfer: everything is taken, then loaded at once.

So a transfer that breaks off has changed nothing, at the price of memory of the model's size while
it lasts: the GPU's own where that has room, which spares both ways over its bus, else the host's.
"""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from actors.weight_sync import buckets
from actors.weight_sync.rendezvous import Group, Rendezvous, run_watched
from actors.weight_sync.shared_memory import import_memory
from actors.weight_sync.transfer import TransferFailed, TransferSpec

SPARE_BYTES = 1 << 30
"""Of a GPU, for what others begin to use at the same moment."""


def receive(transfer: TransferSpec, worker: int, device: torch.device) -> list[Tensor]:
    """The bytes of every bucket. ``worker`` counts those of one engine from 0.

    Raises TransferFailed, also when the learner says nothing within the transfer's time.
    """
    rendezvous = Rendezvous.connect(transfer)
    incoming = _Incoming(rendezvous, transfer, worker, device)
    try:
        return run_watched(incoming.take, rendezvous.check, device)
    except TransferFailed as failure:
        # All others would wait for this one.
        rendezvous.fail(f"an engine gave up: {failure}")
        incoming.abort()
        raise


def has_room(size: int, device: torch.device) -> bool:
    """Whether a GPU can hold so many bytes beside what an engine takes of it meanwhile: one that
    sleeps takes the memory of its weights back while these are there."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(free > 2 * size + SPARE_BYTES)


class _Incoming:
    def __init__(
        self, rendezvous: Rendezvous, transfer: TransferSpec, worker: int, device: torch.device
    ) -> None:
        self._rendezvous = rendezvous
        self._transfer = transfer
        self._rank = transfer.rank + worker
        self._device = device
        self._group: Group | None = None
        self._on_gpu = has_room(sum(map(buckets.size, transfer.headers)), device)

    def take(self) -> list[Tensor]:
        self._rendezvous.set("size", str(self._transfer.size))
        if self._transfer.backend == "nccl":
            self._group = self._rendezvous.group(self._rank, self._transfer.size, self._device)
        heads = self._transfer.headers
        return [self._one(number, buckets.size(head)) for number, head in enumerate(heads)]

    def _one(self, number: int, size: int) -> Tensor:
        if self._group is not None:
            flat = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._group.broadcast(flat)
            return flat if self._on_gpu else buckets.to_host(flat)
        handles = pickle.loads(self._rendezvous.get(f"bucket {number}"))
        taken = import_memory(handles, size, self._device, self._on_gpu)
        self._rendezvous.count(f"taken {number}")
        return taken

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()
