"""What is lost when an engine or a learner dies at work, and when the card's memory runs out."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import psutil

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
from stepwiser.prompting.hub.folders import model_folder, resolve_model
from stepwiser.run.memory.model_size import read_model_size
from stepwiser.run.metrics_file import read_metrics

STEPS = 4
LEARNER, ENGINE = "ray::RayTrainWorker", "ray::RolloutGenerator"
"""How Ray calls the processes that are killed."""
TOO_LARGE = 16
"""Groups of a pass that does not fit into what a learner is let have."""
TOO_SMALL = 0.08
"""Share of the card that it is let have beside twice what it has at its start."""


def measure_faults(drill: Drill, record: Record) -> None:
    """What comes after the death of a learner and of an engine, and what an overflow says."""
    _processes_die(drill, record)
    if drill.dry:
        record(out_of_memory="not provoked: there is no GPU")
    else:
        _memory_runs_out(drill, record)


def _processes_die(drill: Drill, record: Record) -> None:
    """A training whose learner is killed in the second step, and whose engine in the third."""
    write_oracle_prompts(drill.run_dir("faults"), drill.seed)
    config = training_config(drill, "faults", STEPS, checkpoint_every=1)
    killed: dict[str, float] = {}
    over = threading.Event()

    def kill() -> None:
        for done, title in enumerate((LEARNER, ENGINE), 1):
            while len(_steps(session)) < done:
                if over.wait(0.05):
                    return
            for process in own_processes(title):
                process.kill()
                killed[title] = time.time()

    with Session(config) as session:
        session.start(["train"])
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        began = time.time()
        try:
            run_stage(session, "train")
        finally:
            over.set()
            thread.join()
        steps = _steps(session)
    for name, title in (("learner_death", LEARNER), ("engine_death", ENGINE)):
        next_step = min((at for at in steps.values() if at > killed.get(title, began)), default=0.0)
        record(
            **{
                name: {
                    "killed": title in killed,
                    "next_step_after_s": next_step - killed.get(title, next_step),
                }
            }
        )
    record(steps=len(steps), of=STEPS, train_s=time.time() - began)


def _steps(session: Session) -> dict[int, float]:
    """Steps that are done, and when each was last."""
    rows = read_metrics(str(session.store.curve), KIND, JUDGE)
    return {row["step"]: row["time"] for row in rows}


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
    with tempfile.TemporaryDirectory() as folder:
        for groups in (TOO_LARGE, 1):
            own = task_of(task, groups, groups * tokens)
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
            del loop
            worker.close()
        torch.distributed.destroy_process_group()
    record(out_of_memory={"said": said, "then_trained_norm": norm})
