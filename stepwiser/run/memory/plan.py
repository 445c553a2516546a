"""The memory of a stage: what its processes need, where they go, and what is short there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from stepwiser.config import RunConfig
from stepwiser.run.memory.machine import Node
from stepwiser.run.memory.model_size import ModelSize, read_model_size
from stepwiser.run.memory.processes import (
    Parts,
    engine_gpu,
    engine_host,
    learner_gpu,
    learner_host,
    object_store,
    other_processes,
    scorer_gpu,
    scorer_host,
)
from stepwiser.run.resource_plan import Need, plan_stage

FolderOf = Callable[[str], str | None]
"""Gives the folder of a model on this machine, by its name in the configuration; None where it is
not here."""

JUDGED = ("train", "evaluate", "select", "serve", "judge")
"""Stages whose engines hold the judge; all others hold the policy, `solve` both."""


@dataclass(frozen=True)
class Process:
    """``count`` equal processes of one role."""

    role: str
    count: int
    cpus: float
    gpus: float
    host: Parts
    gpu: Parts
    """On each of its GPUs; a share of one counts whole."""

    @property
    def host_bytes(self) -> float:
        return sum(self.host.values())

    @property
    def gpu_bytes(self) -> float:
        return sum(self.gpu.values())


@dataclass(frozen=True)
class StageMemory:
    """Everything that a stage has in memory at the same time."""

    stage: str
    processes: tuple[Process, ...] = ()
    unknown: tuple[str, ...] = ()
    """Models whose size cannot be told: what holds them is left out."""


@dataclass
class Placed:
    """What one node holds."""

    node: Node
    processes: list[tuple[Process, int]] = field(default_factory=list)

    @property
    def host_bytes(self) -> float:
        return sum(process.host_bytes * count for process, count in self.processes)

    @property
    def gpu_bytes(self) -> float:
        """On its fullest GPU: fractions of one meet there, whole ones are one process's own."""
        whole = [p.gpu_bytes for p, _ in self.processes if p.gpus >= 1]
        shared = 0.0
        for process, count in self.processes:
            if 0 < process.gpus < 1:
                shared += process.gpu_bytes * min(count, max(1, int(1 / process.gpus)))
        return max([shared, *whole])

    def add(self, process: Process, count: int) -> None:
        if count:
            self.processes.append((process, count))

    def room_for(self, process: Process) -> int:
        """Processes of a kind that its free CPUs and GPUs take."""
        rooms = [
            (total - sum(getattr(p, name) * n for p, n in self.processes)) / getattr(process, name)
            for name, total in (("cpus", self.node.cpus), ("gpus", self.node.gpus))
            if getattr(process, name) > 0
        ]
        return process.count if not rooms else max(0, int(min(rooms) + 1e-9))


def plan_memory(config: RunConfig, stage: str, folder_of: FolderOf) -> StageMemory:
    """What the processes of a stage need, from the configuration and the files of its models."""
    needs = [n for n in plan_stage(config, stage).needs if n.role != "data task"]
    if not needs:
        return StageMemory(stage)
    names = _models(config, stage)
    sizes = {name: _size(folder_of(name)) for name in names}
    scorers = _scoring(config) if stage == "evaluate" else []
    scoring = {name: _size(folder_of(name)) for name in scorers}
    unknown = tuple(name for name, size in (sizes | scoring).items() if size is None)
    # Stages that hold two models plan with the larger one in every engine.
    known = [size for size in sizes.values() if size is not None]
    processes: list[Process] = []
    vocabulary = 0
    if known:
        size = max(known, key=lambda one: one.parameters)
        vocabulary = size.vocabulary
        processes = [_process(config, stage, need, size) for need in needs]
        if scorers:
            found = [one for one in scoring.values() if one is not None]
            processes = [_or_scorer(config, one, found) for one in processes]
        processes.append(
            Process("object store", 1, 0.0, 0.0, object_store(config, stage, size), {})
        )
    processes += [
        Process(role, count, 0.0, 0.0, {"base": base}, {})
        for role, count, base in other_processes(config, stage, vocabulary)
    ]
    return StageMemory(stage, tuple(processes), unknown)


def _process(config: RunConfig, stage: str, need: Need, size: ModelSize) -> Process:
    host, gpu = (learner_host, learner_gpu) if need.role == "learner" else (engine_host, engine_gpu)
    return Process(
        need.role,
        need.count,
        need.cpus,
        need.gpus,
        host(config, stage, size),
        gpu(config, stage, size),
    )


def _or_scorer(config: RunConfig, engine: Process, sizes: Sequence[ModelSize]) -> Process:
    """The engine, or what takes its place while a larger model scores steps."""
    scorers = [
        replace(
            engine, role="step scorer", host=scorer_host(config, size), gpu=scorer_gpu(config, size)
        )
        for size in sizes
    ]
    return max([engine, *scorers], key=lambda one: (one.gpu_bytes, one.host_bytes))


def _scoring(config: RunConfig) -> list[str]:
    return sorted({judge.model for judge in config.evaluate.judges if judge.scores_steps})


def _models(config: RunConfig, stage: str) -> list[str]:
    policy, judge = config.policy_model, config.judge_model or config.policy_model
    names = {policy, judge} if stage == "solve" else {judge if stage in JUDGED else policy}
    if stage == "serve":
        names = {config.serve.model or judge, config.serve.policy or config.serve.model or judge}
    if stage == "label" and config.label.critic.model is not None:
        names = {config.label.critic.model}
    if stage == "evaluate":
        names |= {one.model for one in config.evaluate.judges if one.kind == "generative"}
    if stage == "train" and config.train.live:
        names.add(policy)
    if stage == "segment" and config.segment.segmenter == "engine":
        names.add(config.segment.segmenter_model or policy)
    return sorted(names)


def _size(folder: str | None) -> ModelSize | None:
    return None if folder is None else read_model_size(folder)


def place(stage: StageMemory, nodes: Sequence[Node]) -> list[Placed]:
    """Processes on nodes: what needs no CPU beside the driver, on the first; the others where they
    have room, one node after the other. What finds no room anywhere is left out, for CPUs and GPUs
    are planned elsewhere."""
    placed = [Placed(node) for node in nodes]
    for process in stage.processes:
        if process.cpus == process.gpus == 0:
            placed[0].add(process, process.count)
            continue
        left = process.count
        for one in placed:
            count = min(left, one.room_for(process))
            one.add(process, count)
            left -= count
    return placed


def shortfalls(stage: StageMemory, nodes: Sequence[Node]) -> list[str]:
    """What is short of host memory and where, in words; empty where the stage fits, or nobody knows
    what there is."""
    return [
        f"{stage.stage} needs {gigabytes(one.host_bytes)} of memory on {one.node.name} "
        f"({_largest(one)}) but processes may have {gigabytes(one.node.limit)} there: "
        f"{gigabytes(one.host_bytes - one.node.limit)} short"
        for one in place(stage, nodes)
        if one.node.limit is not None and one.host_bytes > one.node.limit
    ]


def _largest(one: Placed) -> str:
    ranked = sorted(one.processes, key=lambda item: -item[0].host_bytes * item[1])[:3]
    return ", ".join(f"{n} {p.role} x {gigabytes(p.host_bytes)}" for p, n in ranked)


def gigabytes(size: float) -> str:
    """`1.3 GB`."""
    return f"{size / 1e9:.1f} GB"
