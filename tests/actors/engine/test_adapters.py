"""Adapters in one real engine, held against transformers with the same adapter merged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from actors.engine.engine import Engine
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sampling
from stepwiser.run.model_exports import ADAPTER_KEY
from tests.support.engines import forward_logprobs, running_engine
from tests.support.tiny import make_tiny_model

TOLERANCE = 1e-4
# Two blocks of keys and values and more.
PROMPT = list(range(5, 90))
RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model) -> Iterator[Engine]:
    # A single version at a time, so that a second one has to wait.
    room = {"adapter_rank": RANK, "adapter_versions": 1}
    with running_engine(model, enable_sleep=True, **room) as engine:
        yield engine


def _adapter(model: Path, seed: int, rank: int = RANK) -> dict[str, torch.Tensor]:
    """Random matrices beside every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            (out, width) = weight.shape
            tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, width, generator=generator) / 8
            tensors[f"{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / 8
    return tensors


def _blobs(tensors: dict[str, torch.Tensor], rank: int = RANK) -> list[bytes]:
    """In two parts, as a learner sends what is larger than a bucket."""
    names = sorted(tensors)
    layers = {name.rsplit(".", 3)[-3] for name in names}
    config = {"r": rank, "lora_alpha": ALPHA, "bias": "none", "target_modules": sorted(layers)}
    said = {"format": "pt", ADAPTER_KEY: json.dumps(config)}
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return [save({name: tensors[name] for name in half}, said) for half in halves]


def _logprobs(model: Path, adapter: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    return forward_logprobs(model, ids, 1, adapter, ALPHA / RANK)


def _gap(engine: Engine, model: Path, adapter: dict[str, torch.Tensor]) -> float:
    scores = torch.tensor(asyncio.run(engine.score(PROMPT, 1)))
    return (scores - _logprobs(model, adapter, PROMPT)).abs().max().item()


def _load(engine: Engine, adapter: dict[str, torch.Tensor], version: int) -> None:
    asyncio.run(engine.update_weights(_blobs(adapter), version))


def test_every_load_answers_as_its_own_weights_and_never_from_another_ones_cache(engine, model):
    assert _gap(engine, model, {}) < TOLERANCE
    one, two = _adapter(model, 1), _adapter(model, 2)
    assert (_logprobs(model, one, PROMPT) - _logprobs(model, two, PROMPT)).abs().max() > 0.5
    # The third says a version again, as a learner does that went back to a checkpoint.
    for version, adapter in ((1, one), (2, two), (2, one)):
        _load(engine, adapter, version)
        assert engine.weight_version == version
        cached = []
        for _ in range(2):
            before = engine.stats().cached_prompt_tokens
            ((sample,),) = engine.generate_sync([PROMPT], Sampling(max_tokens=4, logprobs=True))
            cached.append(engine.stats().cached_prompt_tokens - before)
            expected = _logprobs(model, adapter, [*PROMPT, *sample.token_ids])
            given = torch.tensor(sample.logprobs)
            assert (given - expected[len(PROMPT) - 1 :]).abs().max() < TOLERANCE
            assert sample.weight_version == version
        assert cached[0] == 0 < cached[1]
        assert _gap(engine, model, adapter) < TOLERANCE


def test_more_versions_in_flight_than_slots_wait_and_answer_right(engine, model):
    adapters = {version: _adapter(model, version) for version in (11, 12, 13)}
    futures = {}
    for version, adapter in adapters.items():
        _load(engine, adapter, version)
        sampling = Sampling(max_tokens=150, n=2, logprobs=True, seed=version)
        futures[version] = engine.submit(PROMPT, sampling)
        while engine._requests:  # until it has begun, or the next version would be its own
            time.sleep(0.001)
    assert not any(future.done() for future in futures.values())
    for version, future in futures.items():
        for sample in future.result(120.0):
            assert sample.weight_version == version
            expected = _logprobs(model, adapters[version], [*PROMPT, *sample.token_ids])
            given = torch.tensor(sample.logprobs)
            assert (given - expected[len(PROMPT) - 1 :]).abs().max() < TOLERANCE
    assert engine._core is not None
    assert len(engine._core._llm.list_loras()) == 1, "what nobody runs with is forgotten"


def test_an_adapter_lives_through_sleep(engine, model):
    one, two = _adapter(model, 21), _adapter(model, 22)
    _load(engine, one, 21)
    asyncio.run(engine.sleep())
    asyncio.run(engine.wake())
    assert _gap(engine, model, one) < TOLERANCE
    with pytest.raises(UserError, match="only adapters follow"):
        asyncio.run(engine.sleep(level=2))
    asyncio.run(engine.sleep())
    _load(engine, two, 22)
    assert _gap(engine, model, two) < TOLERANCE


def test_what_does_not_fit_is_refused_and_changes_nothing(engine, model):
    good = _adapter(model, 31)
    _load(engine, good, 31)
    name = next(iter(good))
    for payload, words in (
        (_blobs(_adapter(model, 32, rank=16), rank=16), "rank 16 does not fit .* room for rank 8"),
        (_blobs(good | {"base_model.model.lm_head.lora_A.weight": good[name].clone()}), "lm_head"),
        (_blobs({n: t for n, t in good.items() if n != name}), "wrong: base_model"),
        (_blobs(good | {name: good[name][:, :-1].clone()}), "wrong: base_model"),
        (str(model), "takes adapters, and these are whole weights"),
    ):
        with pytest.raises(UserError, match=words):
            asyncio.run(engine.update_weights(payload, 32))
    assert engine.weight_version == 31
    assert _gap(engine, model, good) < TOLERANCE
