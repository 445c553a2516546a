"""Where the two ends of a transfer meet, and how it is cut when somebody stops answering.

Neither an NCCL broadcast nor a lost peer ends by itself. So whatever may block runs on a thread of
its own (`run_watched`), the thread that waits for it has a deadline, and one word at the
rendezvous ends the transfer for all that take part.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from actors.weight_sync.transfer import TransferFailed, TransferSpec

T = TypeVar("T")

_POLL_S = 0.0005, 0.005
"""Between two looks: at first, for weights that take milliseconds, and once it takes longer."""
_ABORT_S = 10.0
_FAILED = "failed"


class Rendezvous:
    """A small key-value store on the learner's node, for one transfer only."""

    def __init__(self, host: str, port: int, timeout_s: float, opens: bool) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self._deadline = time.monotonic() + timeout_s
        self._store = self._connect(host, port, opens)
        self.host, self.port = host, self._store.port

    @classmethod
    def create(cls, host: str, timeout_s: float) -> Rendezvous:
        """The learner's end; ``host`` is the address under which the engines find it."""
        return cls(host, 0, timeout_s, opens=True)

    @classmethod
    def connect(cls, transfer: TransferSpec) -> Rendezvous:
        """An engine's end. Raises TransferFailed when nobody answers."""
        try:
            return cls(transfer.host, transfer.port, transfer.timeout_s, opens=False)
        except torch.distributed.DistError as error:
            raise TransferFailed(
                f"the learner at {transfer.host}:{transfer.port} does not answer: {_first(error)}"
            ) from error

    @property
    def left_s(self) -> float:
        """Seconds until the transfer is given up."""
        return max(0.0, self._deadline - time.monotonic())

    def set(self, key: str, value: bytes | str) -> None:
        self._store.set(key, value)

    def count(self, key: str) -> int:
        """Add one to a count that starts at 0."""
        return self._store.add(key, 1)

    def fail(self, reason: str) -> None:
        """End the transfer for everybody who is still there to hear it."""
        with contextlib.suppress(torch.distributed.DistError):
            self._store.set(_FAILED, reason)

    def check(self) -> None:
        """Raises TransferFailed when somebody gave up, left, or time is up."""
        if self._store.check([_FAILED]):
            raise TransferFailed(self._store.get(_FAILED).decode())
        if not self.left_s:
            raise TransferFailed(
                f"the weights were not through after {self._timeout.total_seconds():g} s"
            )

    def get(self, key: str) -> bytes:
        """What somebody says, or will say."""
        pauses = _pauses()
        while not self._store.check([key]):
            self.check()
            time.sleep(next(pauses))
        return self._store.get(key)

    def wait_count(self, key: str, count: int) -> None:
        """Wait until a count is there."""
        pauses = _pauses()
        while self._store.add(key, 0) < count:
            self.check()
            time.sleep(next(pauses))

    def group(self, rank: int, size: int, device: torch.device) -> Group:
        """The collective of all that take part; returns when they are there."""
        # On a connection of its own: it blocks, and this one must still hear that all is over.
        return Group(self._connect(self.host, self.port, False), rank, size, device, self._timeout)

    def _connect(self, host: str, port: int, opens: bool) -> Any:
        return torch.distributed.TCPStore(
            host, port, None, opens, self._timeout, wait_for_workers=False
        )


class Group:
    """Collectives outside of torch's global process group: NCCL between GPUs, gloo between CPUs."""

    def __init__(
        self, store: Any, rank: int, size: int, device: torch.device, timeout: timedelta
    ) -> None:
        self._device = device
        prefixed = torch.distributed.PrefixStore("group", store)
        if device.type == "cpu":
            self._group: Any = torch.distributed.ProcessGroupGloo(prefixed, rank, size, timeout)
        else:
            options = torch.distributed.ProcessGroupNCCL.Options()
            # torch ends the whole process at this timeout: ours, which does not, must come first.
            options._timeout = 2 * timeout + timedelta(seconds=60)
            self._group = torch.distributed.ProcessGroupNCCL(prefixed, rank, size, options)

    def broadcast(self, flat: Tensor) -> None:
        """From rank 0 to all; returns when the bytes are there."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._group.broadcast([flat], options).wait()
        if self._device.type != "cpu":
            torch.cuda.current_stream(self._device).synchronize()

    def abort(self) -> None:
        """End whatever hangs in this group; the group is of no use after that."""

        def abort() -> None:
            # Of a group that is not whole yet, or broken already, there is nothing to end.
            with contextlib.suppress(RuntimeError):
                self._group.abort()

        # An abort may itself wait for a peer.
        thread = threading.Thread(target=abort, daemon=True)
        thread.start()
        thread.join(_ABORT_S)


def run_watched(work: Callable[[], T], check: Callable[[], None], device: torch.device) -> T:
    """``work()`` on a thread of its own, left behind as soon as ``check`` raises.

    Whatever goes wrong comes out as TransferFailed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            future.set_result(work())
        except BaseException as error:  # raised again where the future is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="weight-transfer", daemon=True).start()
    try:
        while not wait([future], timeout=_POLL_S[1]).done:
            check()
        return future.result()
    except TransferFailed:
        raise
    except torch.distributed.DistError as error:
        raise TransferFailed(f"the connection is broken: {_first(error)}") from error
    except Exception as error:
        raise TransferFailed(f"{type(error).__name__}: {_first(error)}") from error


def _pauses() -> Iterator[float]:
    pause, longest = _POLL_S
    while True:
        yield pause
        pause = min(longest, 1.2 * pause)


def _first(error: BaseException) -> str:
    """torch appends the stack of its C++ code."""
    return str(error).partition("\n")[0]
