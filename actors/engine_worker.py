"""What runs inside vLLM's workers: new weights for the model that is already loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from stepwiser.errors import UserError

Payload = str | Sequence[bytes]
"""Weights on their way: a directory of ``*.safetensors``, or safetensors blobs that together hold
every tensor once."""


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


def _headers(payload: Payload) -> Iterator[bytes]:
    if isinstance(payload, str):
        for file in _files(payload):
            with file.open("rb") as stream:
                yield stream.read(int.from_bytes(stream.read(8), "little"))
    else:
        for blob in payload:
            yield blob[8 : 8 + int.from_bytes(blob[:8], "little")]


def _files(directory: str) -> list[Path]:
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: no *.safetensors there to load weights from")
    return files


def _tensors(payload: Payload, skip: Collection[str]) -> Iterator[tuple[str, Any]]:
    from safetensors.torch import load, load_file

    if isinstance(payload, str):
        parts = (load_file(file) for file in _files(payload))
    else:
        parts = (load(blob) for blob in payload)
    for part in parts:
        yield from ((name, tensor) for name, tensor in part.items() if name not in skip)


class WeightUpdater:
    """Mixed into vLLM's worker class (``worker_extension_cls``); called by ``collective_rpc``."""

    def stepwiser_update_weights(self, payload: Payload, skip: Collection[str] = ()) -> None:
        """Overwrite the weights in place; the engine has checked names and shapes."""
        from vllm.config import set_current_vllm_config
        from vllm.platforms import current_platform

        tensors = _tensors(payload, skip)
        if current_platform.is_cpu():
            # CPU layers keep packed copies of their weights; only a reload packs them again.
            self.reload_weights(weights_iterator=tensors)
            self._stepwiser_retie()
        else:
            with set_current_vllm_config(self.vllm_config):
                self.model_runner.get_model().load_weights(tensors)

    def _stepwiser_retie(self) -> None:
        """Point a tied output layer at the new embeddings.

        The reload replaces the embedding's parameter, but a tied ``lm_head`` gets no tensor of its
        own, is not reloaded, and would go on multiplying with the packed old embeddings.
        """
        config = self.vllm_config.model_config.hf_text_config
        model = self.model_runner.get_model()
        if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "lm_head"):
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        model.lm_head.weight = model.model.embed_tokens.weight
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
