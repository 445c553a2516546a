"""What is lost when an engine or a learner dies at work, and when the card's memory runs out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray

from actors.learner.grpo_loop import KIND
from actors.learner.worker_group import WorkerGroup, out_of_gpu_memory
from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.learner import task_of
from benchmarks.gpu_drill.settings import Drill
from benchmarks.gpu_drill.training import training_config, write_oracle_prompts
from benchmarks.training.torch_arm import TorchTask, batch, our_loop, our_worker
from pipelines.session.session import Session
from pipelines.stages.runner import run_stage
from pipelines.stages.train import JUDGE
from stepwiser.config import RunConfig
from stepwiser.generation import Sampling
from stepwiser.prompting.hub.folders import model_folder, resolve_model
from stepwiser.run.memory.model_size import read_model_size
from stepwiser.run.metrics_file import read_metrics

STEPS = 3
LEARNER = "ray::RayTrainWorker"
TOO_LARGE = 16
"""Groups of a pass that does not fit into what a learner is let have."""
TOO_SMALL = 0.08
"""Share of the card that it is let have beside twice what it has at its start."""


def measure_faults(drill: Drill, record: Record) -> None:
    """What comes after the death of a learner and of an engine, and what an overflow says."""
    _learner_dies(drill, record)
    _engine_dies(drill, record)
    if drill.dry:
        record(out_of_memory="not provoked: there is no GPU")
    else:
        _memory_runs_out(drill, record)


def config_of(drill: Drill) -> RunConfig:
    """Two engines on the card, of which one dies."""
    return drill.config("faults", "engine.count=2", *drill.shares(2))


def _engine_dies(drill: Drill, record: Record) -> None:
    config = config_of(drill)
    with Session(config) as session:
        session.start(["annotate"])
        model = session.policy_dir()
        pool = session.pool(model)
        prompts = session.prompts(model)
        asked = [prompts.policy_ids(p.question) for p in session.problems("train", 32)]
        sampling = Sampling(min(256, config.annotate.max_tokens), n=4)
        victim = pool.pids[0]

        async def killed() -> tuple[int, float]:
            work = [asyncio.create_task(pool.generate(ids, sampling)) for ids in asked]
            await asyncio.sleep(0.3)
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            answers = await asyncio.gather(*work)
            while pool.serving < config.engine.count or victim in await _pids(pool.actors):
                await asyncio.sleep(0.2)
            return sum(len(samples) == sampling.n for samples in answers), time.monotonic() - began

        answered, seconds = session.run(killed())
    record(engine_death={"asked": len(asked), "answered": answered, "recovered_s": seconds})


async def _pids(actors: list[ray.actor.ActorHandle]) -> list[int]:
    return list(await asyncio.gather(*(actor.ready.remote() for actor in actors)))


def _learner_dies(drill: Drill, record: Record) -> None:
    folder = drill.run_dir("faults-train")
    shutil.rmtree(folder, ignore_errors=True)
    write_oracle_prompts(folder, drill.seed)
    config = training_config(drill, "faults-train", STEPS, checkpoint_every=1)
    killed: list[float] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            if read_metrics(str(session.store.curve), KIND, JUDGE):
                for process in own_processes(LEARNER):
                    process.kill()
                    killed.append(time.monotonic())
                    return

    with Session(config) as session:
        session.start(["train"])
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        try:
            run_stage(session, "train")
        finally:
            over.set()
            thread.join()
        rows = read_metrics(str(session.store.curve), KIND, JUDGE)
    after = [row["time"] for row in rows[1:]]
    record(
        learner_death={
            "killed": bool(killed),
            "steps": len({row["step"] for row in rows}),
            "of": STEPS,
            "updates_of_each_step": sorted({row["updates"] for row in rows}),
            "step_apart_s": max(
                b - a for a, b in zip([rows[0]["time"], *after], after, strict=False)
            ),
        }
    )


def own_processes(title: str) -> list[psutil.Process]:
    """Processes of that title whose Ray is this part's: its logs are in our folder."""
    folder = os.environ["RAY_TMPDIR"].rstrip("/") + "/"
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if not command or not command[0].startswith(title):
                continue
            files = Path("/proc", str(process.pid), "fd").iterdir()
            if any(os.readlink(file).startswith(folder) for file in files):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # of somebody else, or gone
    return found


def _memory_runs_out(drill: Drill, record: Record) -> None:
    """A pass that does not fit is named, and a learner with a smaller one trains."""
    import torch

    responses, prompt, response = drill.size.group
    model = resolve_model(drill.model)
    shape = read_model_size(model_folder(model))
    assert shape is not None
    tokens = prompt + responses * response
    task = TorchTask(
        arm="ours",
        model_dir=model,
        precision="bfloat16",
        threads=1,
        shared=True,
        prompts=0,
        group_size=responses,
        prompt_tokens=(prompt, prompt),
        response_tokens=(response, response),
        micro_batch=0,
        token_budget=TOO_LARGE * tokens,
        updates=2,
        answer="",
    )
    said, norm = "nothing: it has fitted", float("nan")
    for groups in (TOO_LARGE, 1):
        own = task_of(task, groups, groups * tokens)
        with tempfile.TemporaryDirectory() as folder:
            worker = our_worker(own, folder, True)
            if groups == TOO_LARGE:
                share = 2 * torch.cuda.memory_allocated() / drill.card_bytes + TOO_SMALL
                torch.cuda.set_per_process_memory_fraction(min(1.0, share))
            loop = our_loop(own, folder, worker)
            try:
                figures = loop.train(0, batch(own, 0, shape.vocabulary))
                norm = float(figures["gradient_norm"])
            except torch.OutOfMemoryError as error:
                group = WorkerGroup("judge", folder, max_tokens_per_microbatch=own.token_budget)
                said = str(out_of_gpu_memory(group, error))
            worker.close()
            torch.distributed.destroy_process_group()
    record(out_of_memory={"said": said, "then_trained_norm": norm})
