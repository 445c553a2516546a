"""An engine worker's end of a transfer: everything is taken to host memory, then loaded at once.

So a transfer that breaks off has changed nothing, at the price of host memory of the model's size
while it lasts.
"""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from actors.weight_sync import buckets
from actors.weight_sync.rendezvous import Group, Line, watched
from actors.weight_sync.shared_memory import copied
from actors.weight_sync.transfer import Ticket, TransferFailed


def receive(ticket: Ticket, worker: int, device: torch.device) -> list[Tensor]:
    """The bytes of every bucket, in host memory. ``worker`` counts those of one engine from 0.

    Raises TransferFailed, also when the learner says nothing within the ticket's time.
    """
    line = Line.dial(ticket)
    incoming = _Incoming(line, ticket, worker, device)
    try:
        return watched(incoming.take, line.check, device)
    except TransferFailed as failure:
        # All others would wait for this one.
        line.fail(f"an engine gave up: {failure}")
        incoming.abort()
        raise


class _Incoming:
    def __init__(self, line: Line, ticket: Ticket, worker: int, device: torch.device) -> None:
        self._line = line
        self._ticket = ticket
        self._rank = ticket.rank + worker
        self._device = device
        self._group: Group | None = None

    def take(self) -> list[Tensor]:
        self._line.say("size", str(self._ticket.size))
        if self._ticket.way == "nccl":
            self._group = self._line.group(self._rank, self._ticket.size, self._device)
        heads = self._ticket.headers
        return [self._one(number, buckets.size(head)) for number, head in enumerate(heads)]

    def _one(self, number: int, size: int) -> Tensor:
        if self._group is not None:
            flat = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._group.broadcast(flat)
            return buckets.to_host(flat)
        handles = pickle.loads(self._line.hear(f"bucket {number}"))
        host = copied(handles, size, self._device)
        self._line.count(f"taken {number}")
        return host

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()
