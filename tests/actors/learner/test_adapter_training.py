"""Adapters in two DeepSpeed ranks without Ray: what is trained, kept, handed out and exported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from actors.learner.adapters import check_start, merged
from stepwiser.config.training import LoraConfig
from stepwiser.errors import UserError
from stepwiser.run.model_exports import adapter_of
from tests.support.preload import spawn_ranks
from tests.support.tiny import make_tiny_model

LORA = LoraConfig(rank=4, alpha=8.0)
VARIANTS = [(2, "float32"), (3, "float32"), (2, "bfloat16")]


def _rank(rank: int, world_size: int, directory: str) -> None:
    """Train every variant two steps, stopping after the first one as well; rank 0 saves it all."""
    from tests.support.scripted_collector import scripted_batch
    from tests.support.train_options import lone_worker

    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size
    )
    results: dict[Any, Any] = {}
    for stage, precision in VARIANTS:
        name = f"{stage}-{precision}"
        worker, loop = lone_worker(directory, 2, stage, precision, kl_coefficient=0.1, lora=LORA)
        start = _state(worker)
        metrics = [loop.train(0, scripted_batch(0))]
        worker.save_checkpoint(f"{directory}/checkpoint-{name}-{rank}", {"step": 1})
        metrics.append(loop.train(1, scripted_batch(1)))
        last = _state(worker)
        worker.export(f"{directory}/export-{name}")
        worker.close()
        # Ray Train merges the folders of all ranks.
        torch.distributed.barrier()
        if rank == 0:
            _merge_folders(directory, name, world_size)
        torch.distributed.barrier()
        worker, loop = lone_worker(directory, 2, stage, precision, kl_coefficient=0.1, lora=LORA)
        worker.load_checkpoint(f"{directory}/checkpoint-{name}")
        loop.train(1, scripted_batch(1))
        results[stage, precision] = (start, last, _state(worker), metrics)
        worker.close()
    # An unmerged warm start: the base model, and the adapter that was made of it.
    worker, _ = lone_worker(
        directory, 2, 2, lora=LORA, adapter=f"{directory}/export-2-float32/adapter"
    )
    results["continued"] = _state(worker)
    worker.close()
    if rank == 0:
        torch.save(results, f"{directory}/results.pt")


def _merge_folders(directory: str, name: str, world_size: int) -> None:
    import shutil

    for rank in range(world_size):
        part = f"{directory}/checkpoint-{name}-{rank}"
        shutil.copytree(part, f"{directory}/checkpoint-{name}", dirs_exist_ok=True)


def _state(worker: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for blob in worker.state_bytes(bucket_bytes=1 << 14)
        for name, tensor in load(blob).items()
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    # Wide enough for ZeRO-3 to cut the base weights into shares.
    make_tiny_model(directory / "model", hidden_size=256)
    spawn_ranks(_rank, 2, 2, str(directory))
    return directory


@pytest.fixture(scope="module")
def results(directory) -> dict[Any, Any]:
    return torch.load(directory / "results.pt")


@pytest.mark.slow
def test_only_adapters_are_trained_handed_out_and_kept(directory, results):
    for (stage, precision), (start, last, _, metrics) in _variants(results):
        # Seven linear layers in each of two blocks, two matrices each; the output layer has none.
        assert len(start) == 28 and all(".lora_" in name for name in start)
        assert all((tensor == 0).all() for name, tensor in start.items() if "lora_B" in name)
        assert all((last[name] != start[name]).any() for name in start)
        assert metrics[1]["kl"] > metrics[0]["kl"] >= 0
        shares = (directory / f"checkpoint-{stage}-{precision}").rglob("*.pt")
        # Twelve bytes of weights and optimizer for each trained number; the base has 1.5 million.
        trained = sum(tensor.numel() for tensor in last.values())
        assert sum(file.stat().st_size for file in shares) < 20 * trained + 400_000


@pytest.mark.slow
def test_stages_agree_and_a_resumed_run_is_the_same(results):
    _, reference, _, _ = results[VARIANTS[0]]
    for variant, (_, last, resumed, _) in _variants(results):
        atol = 1e-5 if variant[1] == "float32" else 5e-3
        for name, tensor in reference.items():
            torch.testing.assert_close(last[name].float(), tensor, rtol=0, atol=atol)
            assert torch.equal(resumed[name], last[name]), (variant, name)


@pytest.mark.slow
def test_an_export_is_the_plain_model_with_the_adapter_in_it(directory, results):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 40)[None]
    for (stage, precision), _ in _variants(results):
        made = directory / f"export-{stage}-{precision}"
        dtype = getattr(torch, precision)
        base = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=dtype).float()
        with torch.no_grad():
            start = base(ids).logits
            beside = PeftModel.from_pretrained(base, adapter_of(made)).eval()(ids).logits
            plain = AutoModelForCausalLM.from_pretrained(made)(ids).logits
        assert plain.dtype == torch.float32
        torch.testing.assert_close(plain, beside, rtol=0, atol=1e-4)
        assert (plain - start).abs().max() > 1e-3
        names = load_file(made / "model.safetensors").keys()
        assert names == load_file(directory / "model" / "model.safetensors").keys()
        assert json.loads((made / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
def test_an_adapter_can_be_gone_on_with(directory, results):
    _, last, _, _ = results[2, "float32"]
    assert results["continued"].keys() == last.keys()
    for name, tensor in results["continued"].items():
        assert torch.equal(tensor, last[name]), name
    adapter = str(directory / "export-2-float32" / "adapter")
    with pytest.raises(UserError, match=r"has rank 4, and learner\.lora\.rank=8"):
        check_start(LoraConfig(rank=8, alpha=8.0), adapter)
    with pytest.raises(UserError, match=r"has alpha 8\.0, and learner\.lora\.alpha=32\.0"):
        check_start(LoraConfig(rank=4), adapter)
    with pytest.raises(UserError, match="holds no PEFT adapter"):
        check_start(LORA, str(directory / "model"))


def test_an_update_too_small_for_bfloat16_survives_the_merge():
    weight = torch.ones(8, 6, dtype=torch.bfloat16)
    small = {
        "base_model.model.q.lora_A.weight": torch.full((4, 6), 2.0**-6, dtype=torch.bfloat16),
        "base_model.model.q.lora_B.weight": torch.full((8, 4), 2.0**-7, dtype=torch.bfloat16),
    }
    delta = 2.0 * 4 * 2.0**-13
    assert (weight + delta == weight).all()  # what a merge into bfloat16 would be
    out = merged(small, LORA, "q.base_layer.weight", weight)
    assert out["q.weight"].dtype == torch.float32
    assert torch.equal(out["q.weight"], torch.full((8, 6), 1 + delta))
    assert merged(small, LORA, "norm.weight", weight)["norm.weight"] is weight


def _variants(results: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return [(key, value) for key, value in results.items() if key != "continued"]
