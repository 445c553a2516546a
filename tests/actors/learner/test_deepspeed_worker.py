"""Two DeepSpeed ranks without Ray: every way to accumulate gradients gives the same update."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.preload import spawn_ranks
from tests.support.tiny import make_tiny_model

UPDATES = 2
VARIANTS = [
    (2, "float32", "_backward_at_once"),
    (2, "float32", "_backward_each"),
    (3, "float32", "_backward_at_once"),
    (3, "float32", "_backward_each"),
    (2, "bfloat16", "_backward_each"),
    (3, "bfloat16", "_backward_each"),
]


def _rank(rank: int, world_size: int, directory: str) -> None:
    """Train every variant in turn in one process; rank 0 saves what came out."""
    from tests.support.scripted_collector import scripted_batch
    from tests.support.train_options import lone_worker

    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size
    )
    results = {}
    for stage, precision, path in VARIANTS:
        worker, loop = lone_worker(directory, UPDATES, stage, precision, kl_coefficient=0.1)
        worker._backward_at_once = worker._backward_each = getattr(worker, path)
        metrics = [loop.train(step, scripted_batch(step)) for step in range(UPDATES)]
        weights = {}
        # Small buckets, so that there are several.
        for bucket in worker.state_buckets(bucket_bytes=1 << 18):
            weights |= {name: tensor.float().clone() for name, tensor in bucket.items()}
        results[stage, precision, path] = (metrics, weights)
        worker.close()
    if rank == 0:
        torch.save(results, f"{directory}/results.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("variants")
    make_tiny_model(directory / "model", hidden_size=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(directory / "compiled"))
        spawn_ranks(_rank, 2, 2, str(directory))
    # DeepSpeed would like to compile kernels: a minute, and a C++ compiler, that nobody needs.
    assert not (directory / "compiled").exists()
    return torch.load(directory / "results.pt")


@pytest.mark.slow
def test_stages_and_accumulation_agree(results):
    _, reference = results[VARIANTS[0]]
    for variant in VARIANTS:
        _, weights = results[variant]
        atol = 1e-5 if variant[1] == "float32" else 5e-3
        for name, tensor in reference.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=atol, msg=f"{variant}")


@pytest.mark.slow
def test_names_are_those_of_the_model_directory(results):
    _, weights = results[VARIANTS[0]]
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights


@pytest.mark.slow
def test_the_first_update_is_on_policy_and_later_ones_are_not(results):
    metrics, _ = results[VARIANTS[0]]
    assert metrics[0]["updates"] == 2
    # Half of the tokens belong to the second update, whose ratio has left 1.
    assert 0 < metrics[0]["approx_kl"] < 0.1
    assert metrics[0]["kl"] > 0
    assert all(m["gradient_norm"] > 1 for m in metrics)
