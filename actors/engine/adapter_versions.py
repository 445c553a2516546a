"""Versions of an adapter in one vLLM engine: the newest, and those that requests still run with.

Every load has a name and a number of its own, also where a learner that went back says a version
again: vLLM keeps keys and values by the adapter's name, so that none of another load is ever read.
A request keeps the adapter that it began with. vLLM runs as many versions at once as it has slots,
and requests of one more wait there. It keeps every version in host memory until it is told that
nobody runs with it: the files that it loads are gone by then.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.engine.worker_extension import Payload, write_tensors
from stepwiser.errors import UserError
from stepwiser.run.model_exports import ADAPTER_CONFIG, ADAPTER_WEIGHTS

Shapes = Mapping[str, tuple[int, ...]]

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def room_for(rank: int) -> int:
    """The smallest rank of vLLM's own list (`vllm.config.lora.MaxLoRARanks`) with room for one."""
    return next(allowed for allowed in _RANKS if allowed >= rank)


def slots(rank: int, versions: int) -> dict[str, Any]:
    """vLLM's settings for adapters of at most this rank, so many versions of them in one step."""
    return {
        "enable_lora": True,
        "max_lora_rank": room_for(rank),
        "max_loras": versions,
        # More than there ever are: it must forget none by itself.
        "max_cpu_loras": 2**20,
    }


def check_kind(model: str, takes_adapters: bool, is_adapter: bool) -> None:
    """Raise UserError for an adapter where whole weights belong, and the other way round."""
    if takes_adapters is not is_adapter:
        kinds = ("adapters", "whole weights")
        takes, given = kinds if takes_adapters else reversed(kinds)
        raise UserError(
            f"the engine for {model} takes {takes}, and these are {given}: engines and learner "
            "need the same learner.lora"
        )


def check_adapter(
    config: Mapping[str, Any], shapes: Shapes, base: Shapes | None, max_rank: int
) -> None:
    """Hold an adapter against the model's shapes and the engine's room, before anything changes.

    Raises UserError. ``base``: None where the model's shapes are not known. ``max_rank``: that the
    engine was started for.
    """
    rank, room = int(config["r"]), room_for(max_rank)
    if rank > room:
        raise UserError(
            f"an adapter of rank {rank} does not fit this engine, which has room for rank "
            f"{room}: start engines and learner with the same learner.lora.rank"
        )
    layers = {name.removesuffix(_A).removesuffix(_B) for name in shapes}
    wrong = []
    for layer in sorted(layers):
        a, b = shapes.get(layer + _A), shapes.get(layer + _B)
        weight = None if base is None else base.get(f"{layer.removeprefix(_PREFIX)}.weight")
        known = a is not None and b is not None and (base is None or weight is not None)
        if not known or (weight is not None and (a, b) != ((rank, weight[1]), (weight[0], rank))):
            wrong.append(layer)
    if wrong:
        rest = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"this adapter of rank {rank} is not one of the engine's model (wrong: "
            f"{', '.join(wrong[:5])}{rest}): it needs A [rank, inputs] and B [outputs, rank] of "
            "linear layers that the model has"
        )


class AdapterVersions:
    """The adapters of one engine; its thread calls every method."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._loads = 0
        self._newest: Any = None
        self._running: dict[str, Any] = {}

    def load(self, config: Mapping[str, Any], payload: Payload) -> None:
        """Have vLLM load an adapter, for the requests that come from now on.

        By way of a folder on the engine's own machine. Raises UserError where vLLM refuses it;
        requests go on with the adapter from before then.
        """
        from vllm.lora.request import LoRARequest

        self._loads += 1
        # Gone at once: an engine that is killed would leave it behind.
        with tempfile.TemporaryDirectory(prefix="stepwiser-adapter-") as folder:
            (Path(folder) / ADAPTER_CONFIG).write_text(json.dumps(config))
            write_tensors(payload, Path(folder) / ADAPTER_WEIGHTS)
            request = LoRARequest(f"load-{self._loads}", self._loads, folder)
            try:
                self._llm.add_lora(request)
            except Exception as error:
                self._llm.is_sleeping()  # raises where it was the end of the engine
                raise UserError(f"vLLM refuses the adapter: {error}") from error
        before, self._newest = self._newest, request
        self._drop_unused(before)

    def begin(self, request_id: str) -> Any:
        """What a new request runs with; None before the first load."""
        if self._newest is not None:
            self._running[request_id] = self._newest
        return self._newest

    def end(self, request_id: str) -> None:
        """A request is done, or was taken out."""
        self._drop_unused(self._running.pop(request_id, None))

    def _drop_unused(self, version: Any) -> None:
        if version is None or version is self._newest:
            return
        users = Counter(running.lora_int_id for running in self._running.values())
        if not users[version.lora_int_id]:
            self._llm.remove_lora(version.lora_int_id)
