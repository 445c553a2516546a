"""What annotation will cost: tokens, GPU-hours, dollars. Arithmetic only.

Every figure that goes in is a named field with its source. A run's own counts replace what is
assumed about the work (`work_of_run`) and about the speed (`rate_of_run`).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

PAPER = "paper (arXiv 2508.19229)"
COMPUTED = "computed from the paper's figures"
ASSUMED = "assumed"

SECONDS_PER_DAY = 86_400.0

PARAMETERS = {
    "0.5B": 0.494e9, "1.5B": 1.544e9, "3B": 3.086e9, "7B": 7.616e9, "14B": 14.77e9, "32B": 32.76e9
}  # fmt: skip
"""Parameters of the Qwen2.5 models by their usual names; any other size is taken as written."""

BANDWIDTH_TB_S = {"A100": 2.039, "A100-40GB": 1.555, "H100": 3.35, "H200": 4.8}
"""Memory bandwidth of SXM cards (80 GB, H200 141 GB, where none is named), from NVIDIA's data
sheets. Decoding waits for memory, so a rate goes from card to card by it."""


@dataclass(frozen=True)
class Figure:
    """A number that an estimate rests on, and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Work:
    """How much there is to generate."""

    problems: Figure
    """Problems that responses are sampled for."""
    responses: Figure
    """Responses of each of them, for the difficulty filter."""
    kept_share: Figure
    """Share of the problems whose responses are neither all right nor all wrong."""
    trajectories: Figure
    """Responses of a kept problem whose chunks are valued."""
    chunks: Figure
    """Chunks of a trajectory; the last one's value is the outcome and needs no rollouts."""
    distinct_share: Figure
    """Share of the prefixes that are no other trajectory's prefix too."""
    rollouts: Figure
    """Completions of a prefix that are planned."""
    rollout_share: Figure
    """Share of them that are made: 1 for fixed, less for exact or sequential stopping."""
    response_tokens: Figure
    rollout_tokens: Figure
    """Mean tokens of a response, and of a completion of a prefix."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name).value
            if not value >= 0 or (field.name.endswith("_share") and value > 1):
                top = " and at most 1" if field.name.endswith("_share") else ""
                raise ValueError(f"{field.name} must be at least 0{top}, got {value}")

    @property
    def sampled_responses(self) -> float:
        return self.problems.value * self.responses.value

    @property
    def prefixes(self) -> float:
        """Prefixes that are rolled out."""
        trajectories = self.problems.value * self.kept_share.value * self.trajectories.value
        return trajectories * max(0.0, self.chunks.value - 1) * self.distinct_share.value

    @property
    def sampled_rollouts(self) -> float:
        return self.prefixes * self.rollouts.value * self.rollout_share.value

    @property
    def tokens(self) -> float:
        """Generated tokens of both kinds."""
        return (
            self.sampled_responses * self.response_tokens.value
            + self.sampled_rollouts * self.rollout_tokens.value
        )


@dataclass(frozen=True)
class Rate:
    """Generated tokens a second that one GPU of a kind was seen to give with one model."""

    name: str
    tokens_per_s: float
    parameters: float | None
    """Of the model it was measured with; None: it holds as it is."""
    gpu: str | None
    source: str

    def on(self, parameters: float, gpu: str) -> float:
        """Tokens a second of one such GPU with a model of so many parameters.

        Assumed, not measured: time per token grows with the parameters and falls with the memory's
        bandwidth.

        Raises:
            ValueError: a GPU whose bandwidth is not known.
        """
        rate = self.tokens_per_s
        if self.parameters is not None:
            rate *= self.parameters / parameters
        if self.gpu is not None and self.gpu != gpu:
            rate *= bandwidth(gpu) / bandwidth(self.gpu)
        return rate


@dataclass(frozen=True)
class Estimate:
    """What the work costs at one rate."""

    rate: Rate
    tokens: float
    gpus: int
    tokens_per_s_per_gpu: float
    dollars_per_gpu_hour: float

    @property
    def days(self) -> float:
        """Wall-clock, all GPUs busy."""
        return self.tokens / (self.gpus * self.tokens_per_s_per_gpu) / SECONDS_PER_DAY

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.gpus

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.dollars_per_gpu_hour


PAPER_WORK = Work(
    problems=Figure(60_000, f"{ASSUMED}: configs/paper-7b.yaml; the paper only says what it kept"),
    responses=Figure(16, PAPER),
    kept_share=Figure(40_000 / 60_000, f"{PAPER}: 40k problems kept, of the assumed 60k"),
    trajectories=Figure(16, f"{ASSUMED}: all of a problem's responses"),
    chunks=Figure(6.8, f"{PAPER}: chunks of a solution at 7B (6.0 at 1.5B)"),
    distinct_share=Figure(1.0, f"{ASSUMED}: long solutions share no prefix"),
    rollouts=Figure(16, PAPER),
    rollout_share=Figure(1.0, "every planned rollout is made (annotate.stopping: fixed)"),
    response_tokens=Figure(610, f"{PAPER}: tokens of a solution, 7B base (616 at 1.5B)"),
    rollout_tokens=Figure(
        385, f"{COMPUTED}: 2.5k tokens/s over 6.5 completions/s of one GPU; a completion is shorter"
        " than a response, as it starts later"
    ),
)  # fmt: skip
"""The paper's annotation."""

PAPER_RATE = Rate(
    "the paper's own", 2_500, PARAMETERS["7B"], "A100", f"{COMPUTED}: 7B, 14 days on 8xA100",
)  # fmt: skip
H100_RATE = Rate(
    "measured, scaled", 52_800, PARAMETERS["0.5B"], "H100",
    "measured: Qwen2.5-Coder-0.5B, 740 prefixes of GSM8K, 8 engines on one H100; those wait for the"
    " host too, so scaling to a larger model should err on the slow side",
)  # fmt: skip
PAPER_JUDGEMENTS = Rate(
    "the paper's own", 800 * 1024 * 4 / (5 * SECONDS_PER_DAY * 8), PARAMETERS["7B"], "A100",
    f"{COMPUTED}: 800 steps of 1,024 x 4 judgements in 5 days on 8xA100 at 7B",
)  # fmt: skip
"""Judgements a second, sampled and learned from, that one GPU gave in training."""
DOLLARS_PER_GPU_HOUR = Figure(2.0, f"{ASSUMED}: a round figure, no market was asked")
DOLLARS_ON_SPOT = Figure(1.0, f"{ASSUMED}: half of the round figure on demand")


def parse_parameters(text: str) -> float:
    """`7B`, `0.5b` or `135M` to a number of parameters.

    Raises:
        ValueError: anything else.
    """
    name = text.strip().upper()
    if name in PARAMETERS:
        return PARAMETERS[name]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", name)
    if not match or float(match[1]) == 0:
        raise ValueError(f"model {text!r} is not a size such as 0.5B, 7B or 135M")
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]]


def bandwidth(gpu: str) -> float:
    """Memory bandwidth in TB/s.

    Raises:
        ValueError: an unknown GPU.
    """
    if gpu not in BANDWIDTH_TB_S:
        raise ValueError(f"GPU {gpu!r} is none of {', '.join(BANDWIDTH_TB_S)}")
    return BANDWIDTH_TB_S[gpu]


def estimate(
    work: Work, rate: Rate, parameters: float, gpus: int, gpu: str, dollars_per_gpu_hour: float
) -> Estimate:
    """The cost of the work at one rate."""
    return Estimate(rate, work.tokens, gpus, rate.on(parameters, gpu), dollars_per_gpu_hour)


def work_of_run(counts: Mapping[str, int], planned_rollouts: int, where: str) -> Work:
    """What a run's own counts (`metrics/annotate.json`) say of each factor; its product is what
    the run generated.

    Raises:
        ValueError: a run without a single rollout, of which nothing can be said.
    """
    source = f"measured in {where}"
    n = {name: float(counts.get(name, 0)) for name in (
        "problems", "responses", "mixed_problems", "trajectories", "chunks", "prefixes",
        "shared_prefixes", "rollouts", "response_tokens", "rollout_tokens",
    )}  # fmt: skip
    if not n["rollouts"]:
        raise ValueError(f"{where} has made no rollouts: nothing can be learned from it")
    # Prefixes that were asked for, each trajectory's for itself: what `chunks - 1` stands for.
    asked = n["prefixes"] + n["shared_prefixes"]
    # Given trajectories (annotate.source) are valued whatever their problems are like.
    kept = n["mixed_problems"] or n["problems"]
    return Work(
        problems=Figure(n["problems"], source),
        responses=Figure(n["responses"] / n["problems"], source),
        kept_share=Figure(kept / n["problems"], source),
        trajectories=Figure(n["trajectories"] / kept, source),
        chunks=Figure(asked / n["trajectories"] + 1, f"{source}: prefixes rolled out, plus 1"),
        distinct_share=Figure(n["prefixes"] / asked, source),
        rollouts=Figure(planned_rollouts, source),
        rollout_share=Figure(n["rollouts"] / (n["prefixes"] * planned_rollouts), source),
        response_tokens=Figure(n["response_tokens"] / n["responses"], source),
        rollout_tokens=Figure(n["rollout_tokens"] / n["rollouts"], source),
    )


def rate_of_run(
    counts: Mapping[str, int],
    cost: Mapping[str, Any],
    parameters: float | None,
    gpu: str,
    where: str,
) -> Rate | None:
    """Tokens a second of one GPU in a run (`metrics/cost-annotate.json`); None where it had none.

    Args:
        counts, cost: the run's metrics.
        parameters: of its policy; None leaves the rate unscaled.
        gpu: what it ran on, which the run does not know.
        where: the run's name.
    """
    if not cost.get("gpu_hours"):
        return None
    tokens = counts["response_tokens"] + counts["rollout_tokens"]
    scaled = f"{parameters / 1e9:.3g}B" if parameters else "not scaled: its model is not there"
    source = f"measured in {where} ({scaled}), {ASSUMED} to be on {gpu}"
    return Rate("the run's own", tokens / (cost["gpu_hours"] * 3600), parameters, gpu, source)


def parameters_of(model: Path) -> float | None:
    """Parameters of a model directory, from the headers of its safetensors; None without any.

    Raises ValueError for a file whose header is not whole.
    """
    total = 0
    for file in model.glob("*.safetensors"):
        try:
            with file.open("rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(length))
            shapes = [t["shape"] for name, t in header.items() if name != "__metadata__"]
        except (
            struct.error,
            OSError,
            OverflowError,
            MemoryError,
            ValueError,
            LookupError,
        ) as error:
            raise ValueError(f"{file} cannot be read: it is no whole safetensors file") from error
        total += sum(math.prod(shape) for shape in shapes)
    return float(total) or None


def with_values(work: Work, figures: Mapping[str, float]) -> Work:
    """The same work with some figures given by the user."""
    return replace(work, **{name: Figure(value, "given") for name, value in figures.items()})
