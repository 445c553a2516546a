"""Sections of the stages around the judge: segmentation, annotation, cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from stepwiser.report.blocks import (
    ABSENT,
    Bar,
    Estimate,
    Facts,
    Note,
    Section,
    Table,
    brief,
    decimal,
    duration,
    percent,
    whole,
)
from stepwiser.report.drawing.charts import Axis, Mark, Plot
from stepwiser.report.drawing.figures import Figure, Figures, Legend
from stepwiser.report.reading import RunData, mapping, number, pick, rows_of

MOST_EXACT_BINS = 33
"""Up to so many rollouts a histogram has one column for each possible share."""


def segmentation(data: RunData) -> Section | None:
    """Before/after table of the chunk-tuned policy (paper section 3.1); paragraphs have none."""
    metrics = data.metrics("segment")
    if not metrics and pick(data.config, "prompts", "steps") == "paragraphs":
        return None
    section = Section(
        "segmentation",
        "Segmentation",
        "The policy learns to write its solution in chunks, from its own right answers.",
        missing="" if metrics else "segment",
    )
    rows = []
    for title, key in (("before (split at line ends)", "before"), ("after (chunks)", "after")):
        row = mapping(metrics, key)
        if row:
            rows.append(
                (
                    title,
                    Estimate.normal(number(row, "accuracy"), number(row, "accuracy_se")),
                    decimal(number(row, "steps"), 2),
                    decimal(number(row, "tokens"), 1),
                    percent(number(row, "well_formed")),
                )
            )
    section.add(Table(("policy", "pass@1", "steps", "tokens", "well formed"), rows))
    facts = [
        ("base responses", whole(number(metrics, "responses"))),
        ("of these right", whole(number(metrics, "right_responses"))),
        ("kept for segmentation", whole(number(metrics, "kept_responses"))),
        (
            "segmented exactly",
            f"{whole(number(metrics, 'exact_segmentations'))} "
            f"({percent(number(metrics, 'exact_share'))})",
        ),
        ("chunks of a response", decimal(number(metrics, "chunks_per_response"), 2)),
    ]
    if metrics:
        section.add(Facts(facts))
    return section


def annotation(data: RunData) -> Section:
    """Counts and values of Monte-Carlo annotation (paper section 3.2)."""
    metrics = data.metrics("annotate")
    counts = mapping(metrics, "counts")
    section = Section(
        "annotation",
        "Annotation",
        "Every chunk is valued by how often the policy still reaches the right answer after it.",
        missing="" if metrics or data.values else "annotate",
    )
    responses, right = number(counts, "responses"), number(counts, "right_responses")
    unchecked = number(counts, "unverifiable_responses") or 0
    checked = responses - unchecked if responses else None
    facts = [
        ("problems", whole(number(counts, "problems"))),
        ("responses", whole(responses)),
        ("responses that could not be checked", whole(unchecked)),
        (
            "pass@1 of the policy",
            decimal(right / checked) if checked and right is not None else ABSENT,
        ),
        (
            "all right / mixed / all wrong",
            " / ".join(
                whole(number(counts, k)) for k in ("all_right", "mixed_problems", "all_wrong")
            ),
        ),
        ("trajectories", whole(number(counts, "trajectories"))),
        ("chunks valued", whole(number(counts, "chunks"))),
        ("rollouts of a prefix", _rollouts(metrics)),
        ("prefixes rolled out", whole(number(counts, "prefixes"))),
        ("rollouts", whole(number(counts, "rollouts"))),
        ("tokens of responses", whole(number(counts, "response_tokens"))),
        ("tokens of rollouts", whole(number(counts, "rollout_tokens"))),
        ("problems rejected", whole(len(rows_of(metrics, "rejects"))) if metrics else ABSENT),
    ]
    if metrics:
        section.add(Facts(facts))
    dropped = [
        (name.removeprefix("malformed: "), whole(number(counts, name)))
        for name in sorted(counts)
        if name.startswith("malformed: ")
    ]
    section.add(
        Figures([f for f in (_histogram(data), _value_paths(data)) if f]),
        Table(("responses dropped because", "count"), dropped),
    )
    return section


def _rollouts(metrics: Mapping[str, Any]) -> str:
    """M, and how many were made on average where they stop early."""
    planned, counts = number(metrics, "rollouts_per_prefix"), mapping(metrics, "counts")
    made, prefixes = number(counts, "rollouts"), number(counts, "prefixes")
    if metrics.get("stopping", "fixed") == "fixed" or not made or not prefixes:
        return whole(planned)
    return f"{decimal(made / prefixes)} of {whole(planned)} planned ({metrics['stopping']})"


def _histogram(data: RunData) -> Figure | None:
    if not data.values:
        return None
    trials = {value.trials for value in data.values if not value.is_outcome}
    # One column a possible share where all prefixes had the same number of rollouts.
    exact = max(trials) if len(trials) == 1 and max(trials) < MOST_EXACT_BINS else 0
    bins = exact or 20
    width = 1 / bins
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for value in data.values:
        at = round(value.mean * bins) if exact else min(bins - 1, int(value.mean * bins))
        counts[at][value.is_outcome] += 1
    top = max(sum(pair) for pair in counts.values())
    air = width / 2 if exact else 0.0
    plot = Plot(Axis("value of a chunk", -air, 1 + air), Axis("chunks", 0, top * 1.06))
    stacks = []
    for at, (rolled, outcome) in sorted(counts.items()):
        centre = at * width if exact else (at + 0.5) * width
        tip = f"value {centre:.3g}: {rolled} by rollouts, {outcome} by the outcome itself"
        stacks.append((centre, (rolled, outcome), tip))
    plot.columns(stacks, 0.84 * width)
    rolled = sum(pair[0] for pair in counts.values())
    return Figure(
        "Values of the chunks",
        plot.svg(f"Histogram of the Monte-Carlo values of {len(data.values)} chunks"),
        (Legend("by rollouts", 0), Legend("holds the answer: the outcome itself", 1)),
        f"{rolled:,} chunks valued by rollouts, {len(data.values) - rolled:,} by their outcome.",
    )


def _value_paths(data: RunData) -> Figure | None:
    """Mean value along trajectories that end right and wrong: where solutions are lost."""
    sums: dict[bool, dict[int, list[float]]] = {True: defaultdict(list), False: defaultdict(list)}
    for value in data.values:
        trajectory = data.trajectories.get(value.trajectory_id)
        if trajectory is not None:
            sums[trajectory.correct][value.chunk_index + 1].append(value.unbiased_mean)
    # A position that few trajectories reach says more about those few than about the position.
    enough = 5
    curves = {
        right: [(p, v) for p, v in sorted(by_position.items()) if len(v) >= enough]
        for right, by_position in sums.items()
    }
    last = max((p for rows in curves.values() for p, _ in rows), default=0)
    if last < 2:
        return None
    plot = Plot(Axis("chunk", 0.6, last + 0.4), Axis("mean value", 0, 1))
    for colour, right in ((0, True), (1, False)):
        points = [(float(p), sum(v) / len(v)) for p, v in curves[right]]
        plot.line(points, colour)
        plot.marks(
            [
                Mark(x, y, tip=f"chunk {x:.0f}: {y:.3f} over {len(v)} trajectories")
                for (x, y), (_, v) in zip(points, curves[right], strict=True)
            ],
            colour,
        )
    return Figure(
        "Value along a solution",
        plot.svg("Mean value by chunk for solutions that end right and wrong"),
        (Legend("ends right", 0), Legend("ends wrong", 1)),
        f"Positions reached by fewer than {enough} trajectories are left out.",
    )


TAUGHT = {
    "solutions": "plain solutions",
    "solutions_with_slip": "… of these with a slip put in",
    "solutions_with_untrained_slip": "… of these with a slip that is read but not trained",
    "reasoned": "reasoned verdicts (worked checks)",
    "reasoned_with_slip": "… of these with a slip put in",
    "reasoned_verdict_wrong": "… of these with a wrong verdict",
    "direct_glance": "direct verdicts (no reasoning)",
    "direct_turns": "direct verdicts in chats",
    "direct_turns_untrained": "… first verdicts of chats, read but not trained",
}


SCORES = (
    ("pass_at_1", "pass@1"),
    ("recompute_share", "share of free answers that reason"),
    ("free_f1", "judge F1, answering freely"),
    ("forced_f1", "judge F1, made to reason"),
    ("direct_glance_f1", "judge F1, made to answer directly"),
    ("cases_direct_glance_balanced", "direct verdicts right, classes weighted alike"),
)


def base_model(data: RunData) -> Section | None:
    """What the packaged base model had been taught before this run; None for any other model."""
    if data.config.get("policy_model") != "embedded":
        return None
    record = data.base_model()
    section = Section(
        "base-model",
        "The base model",
        "The embedded run starts from a tiny model made for it. This is what it had been taught, "
        "counted in training examples, before anything on this page.",
    )
    if not record:
        section.add(Note("The base model's training record (training.json) is not installed."))
        return section
    taught = mapping(record, "taught")
    known = [key for key in TAUGHT if key in taught] + sorted(taught.keys() - TAUGHT.keys())
    section.add(
        Table(
            ("taught", "examples"),
            [(TAUGHT.get(key, key.replace("_", " ")), whole(number(taught, key))) for key in known],
        ),
        Facts(
            [
                ("steps", whole(number(record, "step"))),
                ("tokens", whole(number(record, "tokens"))),
                ("CPU time", duration(number(record, "cpu_seconds"))),
                (
                    "share of worked checks with a slip",
                    percent(number(record, "recipe", "slip_rate")),
                ),
            ]
        ),
    )
    scores = mapping(record, "scores")
    section.add(
        Facts(
            [(title, decimal(number(scores, key))) for key, title in SCORES if key in scores],
        )
    )
    return section


def cost(data: RunData) -> Section:
    """Seconds, tokens, memory and GPU-hours by stage, and their sum."""
    costs = data.costs()
    section = Section(
        "cost",
        "Cost",
        "What each stage took when it last did work. Memory is that of the process tree on the "
        "machine the command ran on.",
        missing="" if costs else "quickstart",
    )
    rows: list[tuple[Any, ...]] = []
    longest = max((number(c, "seconds") or 0.0 for c in costs.values()), default=0.0)
    for stage, row in costs.items():
        seconds = number(row, "seconds")
        part = seconds / longest if seconds is not None and longest else None
        rows.append((stage, Bar(part, duration(seconds)), *_cost_cells(row)))
    summed = ("seconds", "generated_tokens", "prompt_tokens", "trained_tokens", "gpu_hours")
    total: Counter[str] = Counter()
    for row in costs.values():
        total.update({key: value for key in summed if (value := number(row, key)) is not None})
    peaks = {
        key: max((v for c in costs.values() if (v := number(c, key)) is not None), default=None)
        for key in ("peak_memory_gb", "cpus", "gpus")
    }
    whole_run = {key: total[key] for key in summed if key in total} | peaks
    rows.append(
        (
            "all (sum; memory, CPUs, GPUs: most)",
            duration(number(whole_run, "seconds")),
            *_cost_cells(whole_run),
        )
    )
    columns = (
        "stage",
        "time",
        "generated tokens",
        "prompt tokens",
        "trained tokens",
        "peak memory",
        "CPUs",
        "GPUs",
        "GPU-hours",
    )
    if costs:
        section.add(Table(columns, rows, total=True))
    return section


def _cost_cells(row: dict[str, Any]) -> tuple[str, ...]:
    memory = number(row, "peak_memory_gb")
    return (
        whole(number(row, "generated_tokens")),
        whole(number(row, "prompt_tokens")),
        whole(number(row, "trained_tokens")),
        ABSENT if memory is None else f"{memory:.2f} GB",
        brief(number(row, "cpus")),
        brief(number(row, "gpus")),
        decimal(number(row, "gpu_hours"), 2),
    )
