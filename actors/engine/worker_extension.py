"""What runs inside vLLM's workers: new weights for the model that is already loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.engine import vllm_internals
from actors.engine.gpu_memory import write_note_of
from actors.weight_sync.transfer import TransferFailed, TransferSpec
from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.run.model_exports import ADAPTER_KEY

Payload = str | Sequence[bytes] | TransferSpec
"""Weights on their way: a model's directory, or name on the Hub, with ``*.safetensors``;
safetensors blobs that together hold every tensor once; or the transfer of a learner that sends such
blobs' parts."""


def tensor_shapes(payload: Payload) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the headers alone.

    Raises UserError for what is not safetensors and for a tensor that comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for header in _headers(payload):
        try:
            entries = json.loads(header)
            part = {n: tuple(e["shape"]) for n, e in entries.items() if n != "__metadata__"}
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"these weights are not in the safetensors format: {error}") from error
        if twice := shapes.keys() & part.keys():
            raise UserError(f"these weights hold {', '.join(sorted(twice)[:5])} twice")
        shapes |= part
    return shapes


def adapter_config(payload: Payload) -> dict[str, Any] | None:
    """What an adapter's header says of it (peft's ``adapter_config.json``); None for weights of a
    model."""
    header = json.loads(next(_headers(payload), b"{}"))
    said = header.get("__metadata__", {}).get(ADAPTER_KEY)
    return None if said is None else dict(json.loads(said))


def write_tensors(payload: Payload, file: Path) -> None:
    """All tensors of a payload that is here as one safetensors file."""
    from safetensors.torch import save_file

    assert not isinstance(payload, TransferSpec)
    save_file(dict(_tensors(payload, ())), file)


def loaded_shapes(folder: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the checkpoint in a folder; None when it is not safetensors."""
    return tensor_shapes(folder) if any(Path(folder).glob("*.safetensors")) else None


def _headers(payload: Payload) -> Iterator[bytes]:
    if isinstance(payload, TransferSpec):
        yield from payload.headers
    elif isinstance(payload, str):
        for file in _files(payload):
            with file.open("rb") as stream:
                yield stream.read(int.from_bytes(stream.read(8), "little"))
    else:
        for blob in payload:
            yield blob[8 : 8 + int.from_bytes(blob[:8], "little")]


def _files(directory: str) -> list[Path]:
    files = sorted(model_folder(directory).glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: no *.safetensors there to load weights from")
    return files


def _tensors(payload: str | Sequence[bytes], skip: Collection[str]) -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load, load_file

    if isinstance(payload, str):
        parts = (load_file(file) for file in _files(payload))
    else:
        parts = (load(blob) for blob in payload)
    for part in parts:
        yield from ((name, tensor) for name, tensor in part.items() if name not in skip)


class WeightUpdater:
    """Mixed into vLLM's worker class (``worker_extension_cls``); called by ``collective_rpc``."""

    _stepwiser_received: Any = None

    def stepwiser_prepare(self) -> None:
        """What an engine asks of its workers before the first request."""
        _, device = vllm_internals.rank_and_device(self)
        if device.type == "cpu":
            vllm_internals.take_adapter_kernels()

    def stepwiser_note_memory(self, file: str) -> None:
        """Have passes that do not fit on the GPU say so in a file."""
        write_note_of(self, file)

    def stepwiser_receive(self, transfer: bytes) -> str | None:
        """Take what a learner sends (a pickled TransferSpec); says why it failed."""
        from actors.weight_sync.receiver import receive

        opened: TransferSpec = pickle.loads(transfer)
        try:
            with vllm_internals.foreign_nccl():
                received = receive(opened, *vllm_internals.rank_and_device(self))
        except TransferFailed as failure:
            return str(failure)
        self._stepwiser_received = (opened.headers, received)
        return None

    def stepwiser_drop(self) -> None:
        """Forget what was received, and give its memory back: an engine that wakes up wants it."""
        self._stepwiser_received = None
        _, device = vllm_internals.rank_and_device(self)
        if device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def stepwiser_update_weights(
        self, payload: str | Sequence[bytes] | None, skip: Collection[str] = ()
    ) -> None:
        """Overwrite the weights in place; the engine has checked names and shapes.

        Without a payload they are those that were received.
        """
        tensors = self._stepwiser_taken(skip) if payload is None else _tensors(payload, skip)
        vllm_internals.load_weights(self, tensors)
        if payload is None:
            self.stepwiser_drop()

    def _stepwiser_taken(self, skip: Collection[str]) -> Iterator[tuple[str, Any]]:
        from actors.weight_sync.buckets import unpack

        for head, flat in zip(*self._stepwiser_received, strict=True):
            yield from ((name, tensor) for name, tensor in unpack(head, flat) if name not in skip)
