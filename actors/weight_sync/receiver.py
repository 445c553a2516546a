"""An engine worker's end of a transfer: everything is taken to host memory, then loaded at once.

So a transfer that breaks off has changed nothing, at the price of host memory of the model's size
while it lasts.
"""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from actors.weight_sync import buckets
from actors.weight_sync.rendezvous import Group, Rendezvous, run_watched
from actors.weight_sync.shared_memory import import_memory
from actors.weight_sync.transfer import TransferFailed, TransferSpec


def receive(transfer: TransferSpec, worker: int, device: torch.device) -> list[Tensor]:
    """The bytes of every bucket, in host memory. ``worker`` counts those of one engine from 0.

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


class _Incoming:
    def __init__(
        self, rendezvous: Rendezvous, transfer: TransferSpec, worker: int, device: torch.device
    ) -> None:
        self._rendezvous = rendezvous
        self._transfer = transfer
        self._rank = transfer.rank + worker
        self._device = device
        self._group: Group | None = None

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
            return buckets.to_host(flat)
        handles = pickle.loads(self._rendezvous.get(f"bucket {number}"))
        host = import_memory(handles, size, self._device)
        self._rendezvous.count(f"taken {number}")
        return host

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()
