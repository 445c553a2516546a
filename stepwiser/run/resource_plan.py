"""What a stage needs of the cluster, computed before anything is placed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepwiser.config import RunConfig

STAGES_WITH_ENGINES = (
    "segment", "annotate", "train", "evaluate", "solve", "select", "finetune", "judge"
)  # fmt: skip
STAGES_WITH_LEARNERS = ("segment", "train", "finetune")
MARKET_LABEL = "ray.io/market-type"
SPOT = "spot"
"""What the label says of nodes that can be taken back at any moment."""
STAYING = {MARKET_LABEL: f"!{SPOT}"}
"""Ray's selector of all other nodes, those without the label among them."""


def has_engines(config: RunConfig, stage: str) -> bool:
    """Whether a stage asks engines; labels are made without, unless a model is their critic."""
    return stage in STAGES_WITH_ENGINES or (stage == "label" and config.label.critic.on_engines)


@dataclass(frozen=True)
class Need:
    """`count` equal bundles for one role; `share` says whom it takes turns with, if anyone."""

    role: str
    count: int
    cpus: float
    gpus: float
    spot: bool = True
    """Whether nodes that can be taken back at any moment will do."""

    @property
    def total(self) -> dict[str, float]:
        return {"CPU": self.count * self.cpus, "GPU": self.count * self.gpus}


@dataclass(frozen=True)
class ResourcePlan:
    """Everything a stage holds at the same time."""

    stage: str
    needs: tuple[Need, ...]

    @property
    def total(self) -> dict[str, float]:
        return _sum(self.needs)

    def shortfalls(
        self, available: Mapping[str, float], staying: Mapping[str, float] | None = None
    ) -> list[str]:
        """What is missing, in words; empty where the plan fits.

        ``staying``: what the nodes have that are not taken back; where unset, all of it.
        """
        words = []
        staying = available if staying is None else staying
        spot = {name: available.get(name, 0.0) - staying.get(name, 0.0) for name in available}
        learners, engines = self._needs(spot=False), self._needs(spot=True)
        fits = all(self.total[name] <= available.get(name, 0.0) + 1e-9 for name in self.total)
        for name in self.total if fits else ():
            if learners[name] > staying.get(name, 0.0) + 1e-9:
                words.append(
                    f"the learners of {self.stage} need {learners[name]:g} {name} on nodes that "
                    f"stay, but only {staying.get(name, 0.0):g} are there, the others on spot "
                    "nodes: add nodes on demand, or set learner.spot=true"
                )
            elif self.engine_labels(staying) and engines[name] > spot.get(name, 0.0) + 1e-9:
                words.append(
                    f"the engines of {self.stage} need {engines[name]:g} {name} on spot nodes, as "
                    f"those that stay do not hold them and the learners, but only "
                    f"{spot.get(name, 0.0):g} are there: add nodes, or set learner.spot=true"
                )
        for name, needed in self.total.items():
            there = available.get(name, 0.0)
            if needed > there + 1e-9:
                parts = ", ".join(
                    f"{n.count} {n.role} x {n.total[name] / n.count:g}"
                    for n in self.needs
                    if n.total[name]
                )
                words.append(
                    f"{self.stage} needs {needed:g} {name} ({parts}) but only {there:g} are there:"
                    f" {needed - there:g} short"
                )
        return words

    def engine_labels(self, staying: Mapping[str, float]) -> dict[str, str] | None:
        """What nodes of engines must be labelled, so that they leave room for the learners; None
        where nodes that stay, which have this much, can hold both."""
        both = any(self.total[name] > staying.get(name, 0.0) + 1e-9 for name in self.total)
        return {MARKET_LABEL: SPOT} if both and any(self._needs(spot=False).values()) else None

    def _needs(self, *, spot: bool) -> dict[str, float]:
        return _sum(need for need in self.needs if need.spot is spot)


def _sum(needs: Iterable[Need]) -> dict[str, float]:
    sums = {"CPU": 0.0, "GPU": 0.0}
    for need in needs:
        for name, amount in need.total.items():
            sums[name] += amount
    return sums


def engine_range(config: RunConfig) -> tuple[int, int]:
    """Engines that annotation starts with, and may have while it goes on."""
    fewest = config.annotate.min_engines or config.engine.count
    return fewest, max(fewest, config.annotate.max_engines or fewest)


def weight_transfer(config: RunConfig) -> Literal["object_store", "cuda_ipc", "nccl"]:
    """How the learner's weights reach the engines (`train.weight_transfer`)."""
    chosen = config.train.weight_transfer
    if chosen != "auto":
        return chosen
    if config.learner.lora.rank:
        return "object_store"  # adapters are small, and any engine on any node can read them there
    engine, learner = config.engine.gpus, config.learner.gpus
    # NCCL takes no two processes on one GPU, and memory of another GPU cannot be opened.
    if 0 < engine < 1 and 0 < learner < 1:
        return "cuda_ipc"
    return "nccl" if engine >= 1 and learner >= 1 else "object_store"


def plan_stage(config: RunConfig, stage: str) -> ResourcePlan:
    """Engines and learners of one stage.

    Segment and finetune use engines and learners one after the other, but the engines stay up, so
    both are counted. Solve holds a policy and a judge pool of half the engines each, a training
    with live annotation an annotation pool beside its own.
    """
    needs: list[Need] = []
    if stage == "segment" and config.prompts.steps == "paragraphs":
        return ResourcePlan(stage, ())  # nothing to segment, nothing to start
    engine, learner = config.engine, config.learner
    if has_engines(config, stage):
        count = max(2, engine.count) if stage == "solve" else engine.count
        if stage == "annotate":
            count, _ = engine_range(config)
        needs.append(Need("engine", count, engine.ray_cpus, engine.gpus))
    if stage == "train" and config.train.live:
        needs.append(
            Need("annotation engine", engine_range(config)[0], engine.ray_cpus, engine.gpus)
        )
    if stage == "train" and config.train.evaluate_every and config.train.evaluator_engines:
        own = config.train.evaluator_engines
        needs.append(Need("evaluation engine", own, engine.ray_cpus, engine.gpus))
    if stage in STAGES_WITH_LEARNERS:
        # What an elastic group lacks of its full size it can do without.
        workers = learner.min_workers or learner.workers
        needs.append(Need("learner", workers, learner.ray_cpus, learner.gpus, learner.spot))
    if stage == "label":
        needs.append(Need("data task", 1, 1.0, 0.0))
    if stage == "serve":
        needs.append(Need("replica", config.serve.replicas, engine.ray_cpus, engine.gpus))
        if config.serve.policy is not None:
            needs.append(Need("policy replica", 1, engine.ray_cpus, engine.gpus))
    return ResourcePlan(stage, tuple(needs))


def plan_run(config: RunConfig, stages: Sequence[str]) -> list[ResourcePlan]:
    """One plan a stage."""
    return [plan_stage(config, stage) for stage in stages]
