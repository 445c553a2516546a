"""The section of the judge's training: its curves and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepwiser.report.blocks import Facts, Note, Section, brief, decimal, whole
from stepwiser.report.drawing.charts import Axis, Mark, Plot, reach, smooth
from stepwiser.report.drawing.figures import Figure, Figures, Legend
from stepwiser.report.reading import RunData, number


@dataclass(frozen=True)
class Curve:
    """One chart of training: (key, title) of each of its lines."""

    title: str
    y: str
    lines: Sequence[tuple[str, str]]
    share: bool = False
    note: str = ""


CURVES = (
    Curve("Reward", "mean reward", (("reward", "all rollouts"),), share=True),
    Curve(
        "Verdict accuracy on training prompts",
        "accuracy",
        (("accuracy_positive", "Positive chunks"), ("accuracy_negative", "Negative chunks")),
        share=True,
    ),
    Curve(
        "Verdict accuracy on held-out labels",
        "accuracy",
        (
            ("heldout_positive", "Positive chunks"),
            ("heldout_negative", "Negative chunks"),
            ("heldout_balanced", "balanced"),
        ),
        share=True,
    ),
    Curve("Response length", "tokens", (("response_length", "mean"),)),
    Curve("Entropy", "nats a token", (("entropy", "policy entropy"),)),
    Curve(
        "Clipped tokens",
        "share of tokens",
        (("clip_low", "lower clip"), ("clip_high", "upper clip")),
    ),
    Curve(
        "Engine/learner log-prob gap",
        "nats a token",
        (("logprob_gap", "same weights"), ("engine_logprob_error", "all samples")),
        note="How far the engine that sampled and the learner that trains disagree; samples of "
        "older weights (train.staleness) differ by what was learnt since.",
    ),
    Curve(
        "Idle",
        "share of a step",
        (("engine_idle", "engines"), ("learner_idle", "learner")),
        share=True,
        note="Engines: time with nothing to compute. Learner: waiting for a batch, and publishing.",
    ),
    Curve(
        "Groups and verdicts",
        "share",
        (
            ("mixed_groups", "groups that disagree"),
            ("share_no_verdict", "no verdict"),
            ("truncated", "cut at the limit"),
        ),
        share=True,
        note="Only groups whose rewards differ have a gradient.",
    ),
    Curve("Gradient norm", "norm", (("gradient_norm", "before clipping"),)),
)


def training(data: RunData) -> Section:
    """Curves of the RL run and its summary (paper section 3.3)."""
    metrics = data.metrics("train")
    section = Section(
        "training",
        "Training",
        "The judge learns by GRPO to reason about a chunk and to give the verdict of its label.",
        missing="" if metrics or data.curves else "train",
    )
    for name, rows in data.curves.items():
        figures = [figure for curve in CURVES if (figure := _curve(curve, rows))]
        if len(data.curves) > 1:
            section.add(Note(f"Training run “{name}”:"))
        section.add(Figures(figures))
    if data.curves:
        section.add(Note("Faint points are single steps, lines their centred moving mean."))
    if metrics:
        section.add(
            Facts(
                [
                    ("steps", whole(number(metrics, "steps"))),
                    ("steps whose figures are lost", whole(number(metrics, "steps_lost"))),
                    ("training prompts", whole(number(metrics, "prompts", "train"))),
                    ("held-out prompts", whole(number(metrics, "prompts", "heldout"))),
                    ("reward, first → last tenth", _arrow(metrics, "reward", 3)),
                    ("response length, first → last tenth", _arrow(metrics, "response_length", 1)),
                    ("log-prob gap, mean", brief(number(metrics, "logprob_gap"))),
                    ("trained tokens", whole(number(metrics, "trained_tokens"))),
                    (
                        "discriminative baseline: SFT steps",
                        whole(number(metrics, "discriminative", "steps")),
                    ),
                    (
                        "discriminative baseline: last loss",
                        decimal(number(metrics, "discriminative", "loss_last")),
                    ),
                ]
            )
        )
    return section


def _arrow(metrics: dict[str, Any], key: str, places: int) -> str:
    first, last = number(metrics, f"{key}_first"), number(metrics, f"{key}_last")
    return f"{decimal(first, places)} → {decimal(last, places)}"


def _curve(curve: Curve, rows: Sequence[dict[str, Any]]) -> Figure | None:
    series: list[tuple[str, list[tuple[float, float]]]] = []
    for key, title in curve.lines:
        points = [
            (step, value)
            for row in rows
            if (step := number(row, "step")) is not None and (value := number(row, key)) is not None
        ]
        # Two names of one figure: the first that is written counts.
        if points and title not in [shown for shown, _ in series]:
            series.append((title, points))
    if not series:
        return None
    steps = [step for _, points in series for step, _ in points]
    values = [value for _, points in series for _, value in points]
    low, high = (0.0, 1.0) if curve.share else reach(values, zero=min(values) >= 0)
    x_low, x_high = min(steps), max(steps)
    plot = Plot(
        Axis("step", x_low, x_high if x_high > x_low else x_low + 1), Axis(curve.y, low, high)
    )
    for colour, (title, points) in enumerate(series):
        means, _ = smooth([value for _, value in points])
        plot.dots(points, colour)
        plot.line([(x, y) for (x, _), y in zip(points, means, strict=True)], colour)
        if len(points) < 12:
            plot.marks(
                [Mark(x, y, tip=f"{title}, step {x:g}: {brief(y)}") for x, y in points], colour
            )
    ends = "; ".join(f"{t} {brief(p[0][1])} to {brief(p[-1][1])}" for t, p in series)
    return Figure(
        curve.title,
        plot.svg(f"{curve.title} over {len(rows)} steps: {ends}"),
        [Legend(title, colour, line=True) for colour, (title, _) in enumerate(series)],
        curve.note,
    )
