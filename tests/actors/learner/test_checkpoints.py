"""Checkpoints of DeepSpeed ranks without Ray: whole or refused, and at another number of ranks."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.learner import checkpoints
from stepwiser.config.training import LoraConfig
from stepwiser.errors import UserError
from tests.support.preload import spawn_ranks
from tests.support.tiny import make_tiny_model
from tests.support.train_options import lone_worker

UPDATES = 4
"""Of the undisturbed run; the checkpoint holds half of them."""
VARIANTS = [(stage, lora) for lora in (None, LoraConfig(rank=4, alpha=8.0)) for stage in (2, 3)]


def _sealed(directory: Path, step: int, ranks: int = 2) -> Path:
    for rank in range(ranks):
        own = directory.parent / f"{directory.name}-{rank}"
        (own / "state").mkdir(parents=True)
        (own / "state" / f"shard-{rank}.pt").write_bytes(b"x" * 10)
        if rank == 0:
            described = {"step": step, "world_size": ranks}
            (own / checkpoints.STATE_FILE).write_text(json.dumps(described))
        checkpoints.seal(own, rank)
        # Ray Train merges the folders of all ranks.
        for path in [p for p in own.rglob("*") if p.is_file()]:
            target = directory / path.relative_to(own)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return directory


def test_a_checkpoint_that_lacks_any_part_is_not_whole(tmp_path):
    whole = _sealed(tmp_path / "whole", 3)
    assert checkpoints.missing(whole) is None
    assert checkpoints.read_state(whole)["step"] == 3
    for number, path in enumerate(sorted(p for p in whole.rglob("*") if p.is_file())):
        for cut in (None, b"x" * 9, b""):
            broken = _sealed(tmp_path / f"{number}-{cut}", 3)
            part = broken / path.relative_to(whole)
            if cut is None:
                part.unlink()
            else:
                part.write_bytes(cut)
            with pytest.raises(UserError, match="is not whole"):
                checkpoints.read_state(broken)


def test_a_broken_list_of_checkpoints_gives_way_to_the_files(tmp_path):
    run = tmp_path / "run"
    _sealed(run / "checkpoint_2026-01-01_00-00-01.000001", 1)
    second = _sealed(run / "checkpoint_2026-01-01_00-00-02.000001", 2)
    _sealed(run / "checkpoint_2026-01-01_00-00-03.000001", 3)
    (run / "checkpoint_2026-01-01_00-00-03.000001" / "state" / "shard-1.pt").write_bytes(b"x")
    (run / checkpoints.SNAPSHOT).write_text('{"checkpoint_results": [')
    assert checkpoints.mend(run) == second
    assert not (run / checkpoints.SNAPSHOT).exists()
    # Killed again before the next one is listed, or before the first ever was: a whole checkpoint
    # stays one, whoever knows of it.
    assert checkpoints.mend(run) == second
    assert checkpoints.mend(tmp_path / "another run") is None
    (run / checkpoints.SNAPSHOT).write_text('{"checkpoint_results": []}')
    assert checkpoints.mend(run) is None
    assert (run / checkpoints.SNAPSHOT).exists()


def test_random_states_go_on_where_they_were(tmp_path):
    checkpoints.save_random_state(tmp_path, 0)

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    first = draw()
    assert draw() != first
    checkpoints.load_random_state(tmp_path, 0)
    assert draw() == first
    checkpoints.load_random_state(tmp_path, 1)  # was not there: nothing to go on from
    assert draw() != first


def test_one_rank_of_each_machine_converts():
    assert checkpoints.first_of_each(["a", "a", "b", "a", "c", "b"]) == [0, 2, 4]


def _weights(worker) -> dict[str, torch.Tensor]:
    weights = {}
    for bucket in worker.state_buckets():
        weights |= {name: tensor.clone() for name, tensor in bucket.items()}
    return weights


def _rank(rank: int, world_size: int, directory: str, first: bool) -> None:
    """The first run saves half-way and goes on to the end; the second one continues from there."""
    from tests.support.scripted_collector import scripted_batch

    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous-{world_size}-{first}",
        rank=rank,
        world_size=world_size,
    )
    results = {}
    for stage, lora in VARIANTS:
        kind = f"{stage}-{lora is not None}"
        worker, loop = lone_worker(directory, UPDATES, stage, lora=lora)
        half = UPDATES // 2
        start = 0
        if not first:
            start = worker.load_checkpoint(f"{directory}/checkpoint-{kind}")["step"]
            assert start == half
        metrics = []
        for step in range(start, UPDATES):
            if first and step == half:
                # Into a folder of its own; Ray Train would then bring them together.
                worker.save_checkpoint(f"{directory}/share-{kind}-{rank}", {"step": step})
                shutil.copytree(
                    f"{directory}/share-{kind}-{rank}",
                    f"{directory}/checkpoint-{kind}",
                    dirs_exist_ok=True,
                )
                torch.distributed.barrier()
            metrics.append(loop.train(step, scripted_batch(step)))
        results[kind] = (metrics[-half:], _weights(worker))
        worker.close()
    if not first:
        with pytest.raises(UserError, match="written with zero_stage=2, this run has 3"):
            worker, _ = lone_worker(directory, UPDATES, 3)
            worker.load_checkpoint(f"{directory}/checkpoint-2-False")
        with pytest.raises(UserError, match="written with lora={.*'rank': 4.*, this run has None"):
            worker.load_checkpoint(f"{directory}/checkpoint-3-True")
        worker.close()
    if rank == 0:
        torch.save(results, f"{directory}/results-{world_size}-{first}.pt")


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_in_the_same_way(tmp_path):
    before, after = 2, 1
    make_tiny_model(tmp_path / "model", hidden_size=256)
    for ranks, first in ((before, True), (after, False)):
        spawn_ranks(_rank, ranks, ranks, str(tmp_path), first)
    whole = torch.load(tmp_path / f"results-{before}-True.pt")
    continued = torch.load(tmp_path / f"results-{after}-False.pt")
    assert whole.keys() == continued.keys() and len(whole) == len(VARIANTS)
    for kind, (metrics, weights) in whole.items():
        others, there = continued[kind]
        for one, other in zip(metrics, others, strict=True):
            assert one["step"] == other["step"]
            for key in ("loss", "gradient_norm", "approx_kl"):
                assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), (kind, key)
        for name, tensor in weights.items():
            torch.testing.assert_close(there[name], tensor, rtol=0, atol=1e-5, msg=name)
