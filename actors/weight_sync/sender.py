"""The learner's end: three ways for its weights to reach the engines (`train.weight_transfer`).

`object_store` puts safetensors bytes into Ray's object store, from where any engine on any node
takes them when it can. The other two send straight to the engines that are up: `cuda_ipc` lets
engines on the learner's own GPUs read its memory, `nccl` broadcasts to engines on other GPUs. On a
CPU the same two go through a shared file and gloo.
"""

from __future__ import annotations

import logging
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import ray
import torch
from torch import Tensor

from actors.weight_sync import buckets
from actors.weight_sync.rendezvous import Group, Rendezvous, run_watched
from actors.weight_sync.shared_memory import export_memory, memory_key
from actors.weight_sync.transfer import TransferBackend, TransferFailed, TransferSpec
from stepwiser.errors import UserError

PublishWeights = Callable[[int, Any, float], dict[str, float]]
"""Gives (version, source, seconds) to the engines and waits; returns figures. On rank 0 only."""
KeepWeightCopy = Callable[[int, list[Any]], None]
"""Gives references to blobs of a version to whoever keeps them for engines that come later."""

logger = logging.getLogger(__name__)


class WeightSource(Protocol):
    """One rank of a learner, as far as its weights are concerned (`learner.deepspeed_worker`)."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def all_reduce(self, values: Sequence[float]) -> list[float]: ...

    def weight_buckets(self, bucket_bytes: int) -> list[list[tuple[str, torch.nn.Parameter]]]: ...

    def gathered_buckets(self, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]: ...

    def state_bytes(self, bucket_bytes: int) -> Iterator[bytes]: ...


class WeightSender(ABC):
    """How the weights of a learner reach the engines. All ranks call `send` in lockstep."""

    def __init__(self, worker: WeightSource, bucket_bytes: int, hand_over: PublishWeights) -> None:
        self._worker = worker
        self._bucket_bytes = bucket_bytes
        self._hand_over = hand_over

    @abstractmethod
    def send(self, version: int, timeout_s: float) -> dict[str, float]:
        """Returns when the engines have this version; figures come back on rank 0.

        Raises what the hand-over raises; nothing is left half done then, and the next version can
        be sent.
        """


def make_sender(
    backend: TransferBackend,
    worker: WeightSource,
    bucket_bytes: int,
    hand_over: PublishWeights,
    keep: KeepWeightCopy,
) -> WeightSender:
    """The sender for a way, on every rank."""
    if backend == "object_store":
        return ObjectStoreSender(worker, bucket_bytes, hand_over)
    return StreamSender(backend, worker, bucket_bytes, hand_over, keep)


class ObjectStoreSender(WeightSender):
    """Safetensors bytes in Ray's object store."""

    def send(self, version: int, timeout_s: float) -> dict[str, float]:
        refs = [ray.put(blob) for blob in self._worker.state_bytes(self._bucket_bytes)]
        return self._hand_over(version, refs, timeout_s) if self._worker.rank == 0 else {}


class StreamSender(WeightSender):
    """Straight to the engines that are up, in half of the time; what fails goes the long way.

    Rank 0 keeps a copy in host memory as the buckets pass and puts it into the object store in the
    background, for engines that join or restart before the next version.
    """

    def __init__(
        self,
        backend: Literal["cuda_ipc", "nccl"],
        worker: WeightSource,
        bucket_bytes: int,
        hand_over: PublishWeights,
        keep: KeepWeightCopy,
    ) -> None:
        super().__init__(worker, bucket_bytes, hand_over)
        self._backend = backend
        self._keep = keep
        self._fallback = ObjectStoreSender(worker, bucket_bytes, hand_over)
        self._copying: threading.Thread | None = None

    def send(self, version: int, timeout_s: float) -> dict[str, float]:
        worker = self._worker
        self.settle()  # or two copies would be in memory
        out = self._begin(version, timeout_s / 2) if worker.rank == 0 else None
        copies: list[Tensor] = []
        under_way: Callable[[], Tensor] | None = None
        for bucket in worker.gathered_buckets(self._bucket_bytes):
            if self._backend == "nccl" and out is None:
                continue
            flat = buckets.pack([tensor for _, tensor in bucket])
            before, under_way = under_way, buckets.begin_to_host(flat) if out is not None else None
            if self._backend == "nccl" and out is not None:
                out.broadcast(flat)
            else:
                self._share(flat, out)
            if before is not None:
                copies.append(before())
        figures = out.finish() if out is not None else {}
        if under_way is not None:
            copies.append(under_way())
        if any(worker.all_reduce([out is not None and out.failure is not None])):
            figures = self._fallback.send(version, timeout_s / 2)
            return figures | ({"publish_fallbacks": 1.0} if worker.rank == 0 else {})
        if out is not None:
            self._copy(version, out.heads, copies)
        return figures

    def settle(self) -> None:
        """Wait until the copy of what was sent last is in the object store."""
        if self._copying is not None:
            self._copying.join()

    def _begin(self, version: int, timeout_s: float) -> Outgoing:
        heads = [
            buckets.header([(name, p.dtype, buckets.weight_shape(p)) for name, p in bucket])
            for bucket in self._worker.weight_buckets(self._bucket_bytes)
        ]
        rendezvous = Rendezvous.create(ray.util.get_node_ip_address(), timeout_s)
        transfer = TransferSpec(
            self._backend, rendezvous.host, rendezvous.port, tuple(heads), timeout_s
        )
        return Outgoing(
            rendezvous,
            heads,
            self._worker.device,
            lambda: self._hand_over(version, transfer, timeout_s),
        )

    def _share(self, flat: Tensor, out: Outgoing | None) -> None:
        """Every rank shows its bytes, for engines on its own GPU."""
        with export_memory(flat) as handle:
            shown: list[Any] = [None] * self._worker.world_size
            torch.distributed.all_gather_object(shown, (memory_key(flat.device), handle))
            if out is not None:
                out.show(dict(shown))
            # No rank may drop its bytes while an engine reads them.
            torch.distributed.barrier()

    def _copy(self, version: int, heads: Sequence[bytes], copies: Sequence[Tensor]) -> None:
        def copy() -> None:
            try:
                pairs = zip(heads, copies, strict=True)
                self._keep(version, [ray.put(buckets.blob(head, flat)) for head, flat in pairs])
            except Exception as error:
                # Whatever it is: a thread cannot raise it to anybody, and only an engine that
                # joins before the next version would have needed the copy.
                logger.warning("weight version %d has no copy: %r", version, error)

        self._copying = threading.Thread(target=copy, name="weight-copy", daemon=True)
        self._copying.start()


class Outgoing:
    """One transfer, on rank 0. Failure is noted, not raised: the other ranks hear of it later."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        heads: Sequence[bytes],
        device: torch.device,
        hand_over: Callable[[], dict[str, float]],
    ) -> None:
        self.heads = heads
        self.failure: TransferFailed | None = None
        self._rendezvous = rendezvous
        self._device = device
        self._group: Group | None = None
        self._number = 0
        # The engines answer when they have everything, so meanwhile somebody else must wait.
        self._handed: Future[dict[str, float]] = ThreadPoolExecutor(1).submit(hand_over)

    def broadcast(self, flat: Tensor) -> None:
        """The next bucket, to all at once."""

        def work() -> None:
            if self._group is None:
                self._group = self._rendezvous.group(0, self._size(), self._device)
            self._group.broadcast(flat)

        self._attempt(work)

    def show(self, handles: dict[str, bytes]) -> None:
        """The next bucket, by place; returns when every engine has read it."""

        def work() -> None:
            self._rendezvous.set(f"bucket {self._number}", pickle.dumps(handles))
            self._rendezvous.wait_count(f"taken {self._number}", self._size() - 1)

        self._attempt(work)
        self._number += 1

    def finish(self) -> dict[str, float]:
        """Wait for the engines; returns their figures, or nothing after a failure.

        Raises UserError when they refuse the weights: no other way would help.
        """
        self._attempt(lambda: self._handed.result(self._rendezvous.left_s))
        if self._handed.done() and isinstance(self._handed.exception(), UserError):
            raise UserError(str(self._handed.exception()))
        if self.failure is None:
            return self._handed.result()
        logger.warning("weights go by the object store: %s", self.failure)
        return {}

    def _size(self) -> int:
        return int(self._rendezvous.get("size"))

    def _attempt(self, work: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            run_watched(work, self._check, self._device)
        except TransferFailed as failure:
            self.failure = failure
            self._rendezvous.fail(f"the learner gave up: {failure}")
            if self._group is not None:
                self._group.abort()

    def _check(self) -> None:
        self._rendezvous.check()
        if self._handed.done() and (error := self._handed.exception()):
            raise TransferFailed(str(error).partition("\n")[0]) from error
