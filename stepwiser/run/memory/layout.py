"""Which engine and which rank lies on which cards, and whether each card's memory holds them.

Sizes are bytes. Those of a GPU follow the source code of vLLM and DeepSpeed and were not measured
(`processes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stepwiser.config import RunConfig
from stepwiser.run.memory.machines import CPUS, Machines
from stepwiser.run.memory.model_size import ModelSize
from stepwiser.run.memory.plan import gigabytes
from stepwiser.run.memory.processes import Parts, engine_gpu, learner_gpu
from stepwiser.run.memory.remedies import Setting, with_settings
from stepwiser.run.resource_plan import Need, plan_stage

SPARE = 0.05
"""Share of a learner's card that PyTorch's allocator holds and cannot use."""
UTILIZATION = 0.9
"""Of a card, or of the share that an engine has, where `engine.gpu_memory_utilization` is unset."""
RESTING = ("base", "weights", "optimizer")
"""What a learner keeps while engines sample on its card."""
ENOUGH = 8
"""Longest sequences that an engine's cache should hold: with fewer it decodes few at a time."""
MOST_NODES = 16
"""Machines that are tried before nothing is said to fit."""


@dataclass(frozen=True)
class Seat:
    """One process on its cards."""

    role: str
    index: int
    node: int
    cards: tuple[int, ...]
    """Of that node; none for what runs without."""


@dataclass
class _Node:
    cpus: float
    free: list[float]

    def take(self, need: Need) -> tuple[int, ...] | None:
        """Cards for one more process; None where there is no room."""
        if need.cpus > self.cpus + 1e-9:
            return None
        if need.gpus >= 1:
            whole = [card for card, free in enumerate(self.free) if free > 1 - 1e-9]
            cards = tuple(whole[: int(need.gpus)])
            if len(cards) < need.gpus:
                return None
        else:
            open_ = [card for card, free in enumerate(self.free) if free >= need.gpus - 1e-9]
            # The fullest that has room: fractions of one card meet there.
            cards = (min(open_, key=lambda card: self.free[card]),) if need.gpus and open_ else ()
            if need.gpus and not cards:
                return None
        self.cpus -= need.cpus
        for card in cards:
            self.free[card] -= min(need.gpus, 1.0)
        return cards


@dataclass(frozen=True)
class CardMemory:
    """One line of a card's arithmetic: what is on it, in which state, against what it may have."""

    role: str
    parts: Parts
    limit: float
    sequences: float | None = None
    """Of the longest kind that an engine's cache holds with what is left."""

    @property
    def needed(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Layout:
    """A stage on machines."""

    stage: str
    machines: Machines
    seats: tuple[Seat, ...]
    lines: tuple[CardMemory, ...]
    problems: tuple[str, ...] = field(default=())
    """Why it does not fit, in words; empty where it does."""


def lay_out(config: RunConfig, stage: str, size: ModelSize, machines: Machines) -> Layout:
    """Seats of every process of a stage, and the arithmetic of the cards under them.

    Of each kind of process one stands for all: they are equal.
    """
    needs = [need for need in plan_stage(config, stage).needs if need.role != "data task"]
    seats, problems = _seated(needs, machines)
    if needs and not any(need.gpus for need in needs):
        problems.append(
            f"{stage} of this scenario uses no GPU: set engine.gpus and learner.gpus to 1"
        )
    lines = list(_lines(config, stage, size, machines, needs))
    for line in lines:
        if line.needed > line.limit:
            problems.append(
                f"{line.role}: {gigabytes(line.needed)} needed, {gigabytes(line.limit)} there"
            )
    return Layout(stage, machines, tuple(seats), tuple(lines), tuple(problems))


def _seated(needs: Sequence[Need], machines: Machines) -> tuple[list[Seat], list[str]]:
    """Engines first, as the stages start them; one machine after the other."""
    nodes = [_Node(CPUS * machines.cards, [1.0] * machines.cards) for _ in range(machines.nodes)]
    seats, problems = [], []
    for need in needs:
        seated = 0
        for index in range(need.count):
            for number, node in enumerate(nodes):
                if (cards := node.take(need)) is not None:
                    seats.append(Seat(need.role, index, number, cards))
                    seated += 1
                    break
        if seated < need.count:
            problems.append(
                f"{need.count} x {need.role} of {need.gpus:g} GPU and {need.cpus:g} CPU: "
                f"{need.count - seated} of them find no room on {machines}"
            )
    return seats, problems


def _lines(
    config: RunConfig, stage: str, size: ModelSize, machines: Machines, needs: Sequence[Need]
) -> Iterator[CardMemory]:
    engines = [need for need in needs if need.role != "learner" and need.gpus]
    learners = [need for need in needs if need.role == "learner" and need.gpus]
    memory = machines.card.memory
    asked = config.engine.gpu_memory_utilization
    share = 0.0
    for need in engines:
        share = UTILIZATION * min(1.0, need.gpus) if asked is None else asked
        parts = dict(engine_gpu(config, stage, size))
        least = parts.pop("KV cache")
        room = share * memory - sum(parts.values())
        yield CardMemory(
            f"{need.role} (one sequence)",
            {**parts, "KV cache": least},
            share * memory,
            sequences=max(0.0, room / least),
        )
    for _ in learners:
        parts = dict(learner_gpu(config, stage, size))
        spare = {"allocator": SPARE * memory}
        shared = bool(engines) and 0 < config.learner.gpus < 1
        if not shared:
            yield CardMemory("learner", {**parts, **spare}, memory)
        elif config.train.colocated:
            awake = {"engine": share * memory}
            resting = {name: parts[name] for name in RESTING if name in parts}
            yield CardMemory("card while engines sample", {**awake, **resting, **spare}, memory)
            asleep = {"engine, asleep": float(engine_gpu(config, stage, size)["base"])}
            yield CardMemory("card while the learner works", {**asleep, **parts, **spare}, memory)
        else:
            both = {"engine": share * memory, **parts, **spare}
            yield CardMemory("card of engine and learner", both, memory)


# --- what would fit -------------------------------------------------------------------------------


def what_fits(
    config: RunConfig, stage: str, size: ModelSize, machines: Machines
) -> tuple[Machines, list[Setting]] | None:
    """The nearest settings that fit on these machines, else on more of them; None: neither does.

    Each is tried, none is guessed. Settings that leave the results what they are come first.
    """
    cramped = None
    for nodes in range(machines.nodes, MOST_NODES + 1):
        tried = Machines(nodes, machines.cards, machines.card)
        for settings in _shapes(config, stage, tried):
            changed = with_settings(config, [stage], settings)
            if changed is None or (found := lay_out(changed, stage, size, tried)).problems:
                continue
            if all(line.sequences is None or line.sequences >= ENOUGH for line in found.lines):
                return tried, settings
            cramped = cramped or (tried, settings)
        if cramped:
            return cramped
    return None


def _shapes(config: RunConfig, stage: str, machines: Machines) -> Iterator[list[Setting]]:
    """Ways to share machines, all weights trained first, then adapters."""
    gpus = machines.gpus
    for width in (1, 2, 4, 8):
        if width > machines.cards:
            return
        engine: list[Setting] = [
            ("engine.tensor_parallel_size", width), ("engine.gpus", width),
            ("engine.gpu_memory_utilization", 0.85),
        ]  # fmt: skip
        if stage != "train":
            yield [
                *engine,
                ("engine.count", gpus // width),
                ("annotate.min_engines", gpus // width),
            ]
            continue
        adapters: list[Setting] = [("learner.lora.rank", 16), ("train.weight_transfer", "auto")]
        budget = config.learner.max_tokens_per_microbatch
        for extra in ([], adapters):
            for ranks in _ranks(gpus, machines.cards):
                engines = (gpus - ranks) // width
                for tokens in (budget, budget // 2):
                    if engines and tokens:
                        yield [
                            *engine, ("engine.count", engines), ("learner.workers", ranks),
                            ("learner.gpus", 1), ("learner.zero_stage", 3),
                            ("learner.gradient_checkpointing", True),
                            ("learner.max_tokens_per_microbatch", tokens), *extra,
                        ]  # fmt: skip
            if width == 1:
                for utilization in (0.45, 0.4, 0.3):
                    yield [
                        ("engine.count", gpus), ("engine.gpus", 0.5),
                        ("engine.tensor_parallel_size", 1),
                        ("engine.gpu_memory_utilization", utilization),
                        ("learner.workers", gpus), ("learner.gpus", 0.5),
                        ("learner.zero_stage", 3 if gpus > 1 else 2),
                        ("learner.gradient_checkpointing", True), ("train.colocated", True),
                        *extra,
                    ]  # fmt: skip


def _ranks(gpus: int, cards: int) -> list[int]:
    """Ranks to try: half of the cards, then more, then whole machines but one."""
    found = [gpus // 2, gpus * 3 // 4, gpus - cards]
    return list(dict.fromkeys(ranks for ranks in found if 0 < ranks < gpus))
