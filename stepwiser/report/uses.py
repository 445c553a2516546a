"""Sections about what the judge is good for: search, selection, fine-tuning; and the headline."""

from __future__ import annotations

from typing import Any

from stepwiser.report.blocks import (
    Estimate,
    Section,
    Table,
    decimal,
    judge_colour,
    judge_title,
    whole,
)
from stepwiser.report.charts import Axis, Mark, Plot, reach
from stepwiser.report.figures import BarGroups, Bars, Figure, Figures, Interval, Legend, signed_rows
from stepwiser.report.judges import f1
from stepwiser.report.reading import RunData, mapping, number, rows_of

PICKS = {
    "policy": "policy before",
    "random": "random answer",
    "judge": "judge's pick",
    "random_right": "random right answer",
    "judge_right": "judge's pick of the right ones",
}
PLAIN, MAJORITY = 4, 5


def solving(data: RunData) -> Section:
    """Accuracy against total tokens (paper section 5.1)."""
    metrics = data.metrics("solve")
    section = Section(
        "solving",
        "Solving with the judge",
        f"Chunk-reset search on {whole(number(metrics, 'problems'))} fresh problems: a chunk that "
        "the judge refuses is sampled again. Tokens are all tokens of a problem, those of refused "
        "chunks and of the judge included.",
        missing="" if metrics else "solve",
    )
    if not metrics:
        section.lead = ""
        return section
    section.add(Figures([f for f in (_scatter(metrics),) if f]), _solve_table(metrics))
    return section


def _accuracy(row: Any) -> Estimate | None:
    return Estimate.normal(number(row, "accuracy"), number(row, "accuracy_se"))


def _scatter(metrics: dict[str, Any]) -> Figure | None:
    search = mapping(metrics, "search")
    votes = [
        (tokens, estimate, number(row, "votes") or 0)
        for row in rows_of(metrics, "majority")
        if (tokens := number(row, "total_tokens")) and (estimate := _accuracy(row))
    ]
    points = [
        (name, tokens, estimate)
        for name, row in search.items()
        if (tokens := number(row, "total_tokens")) and (estimate := _accuracy(row))
    ]
    plain, plain_tokens = _accuracy(metrics.get("plain")), number(metrics, "plain", "tokens")
    xs = [tokens for tokens, _, _ in votes] + [tokens for _, tokens, _ in points]
    estimates = [estimate for _, estimate, _ in votes] + [estimate for _, _, estimate in points]
    if plain and plain_tokens:
        xs.append(plain_tokens)
        estimates.append(plain)
    if not xs:
        return None
    ys = [v for e in estimates for v in (e.mean, e.low, e.high) if v is not None]
    log = max(xs) > 4 * min(xs)
    low, high = (min(xs) / 1.2, max(xs) * 1.15) if log else reach(xs)
    bottom, top = reach(ys)
    plot = Plot(
        Axis("total tokens a problem" + (" (log scale)" if log else ""), low, high, log=log),
        Axis("accuracy", max(0.0, bottom), min(1.0, top)),
        width=760,
        height=400,
    )
    plot.band(
        [(x, e.low, e.high) for x, e, _ in votes if e.low is not None and e.high is not None],
        MAJORITY,
    )
    plot.line([(x, e.mean) for x, e, _ in votes], MAJORITY)
    plot.marks(
        [
            Mark(
                x,
                e.mean,
                tip=f"majority of {k:.0f}: {e.mean:.3f} {e.interval} at {x:.0f} tokens",
                label=f"{k:.0f}",
                size=3.5,
            )
            for x, e, k in votes
        ],
        MAJORITY,
    )
    legend = [Legend("majority vote (k at the points, 95% band)", MAJORITY)] if votes else []
    if plain and plain_tokens:
        tip = f"plain sampling: {plain.mean:.3f} {plain.interval} at {plain_tokens:.0f} tokens"
        plot.marks([Mark(plain_tokens, plain.mean, plain.low, plain.high, tip, size=5.5)], PLAIN)
        legend.append(Legend("plain sampling", PLAIN))
    for name, tokens, e in points:
        colour = judge_colour(name, list(search))
        tip = f"chunk-reset, {judge_title(name)}: {e.mean:.3f} {e.interval} at {tokens:.0f} tokens"
        plot.marks([Mark(tokens, e.mean, e.low, e.high, tip, size=6.5)], colour)
        legend.append(Legend(f"chunk-reset, {judge_title(name)}", colour))
    return Figure(
        "Accuracy against tokens",
        plot.svg("Accuracy against total tokens of plain sampling, majority vote and chunk-reset"),
        legend,
        "95% intervals.",
        wide=True,
    )


def _solve_table(metrics: dict[str, Any]) -> Table:
    plain = mapping(metrics, "plain")
    tokens = decimal(number(plain, "tokens"), 0)
    rows: list[tuple[Any, ...]] = [
        ("plain sampling", _accuracy(plain), tokens, "", "", tokens, "", "")
    ]
    for name, row in mapping(metrics, "search").items():
        vote = mapping(row, "majority_at_cost")
        rows.append(
            (
                f"chunk-reset, {judge_title(name)}",
                _accuracy(row),
                *(
                    decimal(number(row, f"{part}_tokens"), 0)
                    for part in ("accepted", "rejected", "judge", "total")
                ),
                decimal(number(row, "forced"), 2),
                _accuracy(vote),
            )
        )
        if vote:
            total = decimal(number(vote, "total_tokens"), 0)
            rows.append(
                (
                    f"↳ majority of {whole(number(vote, 'votes'))}, same tokens",
                    _accuracy(vote),
                    total,
                    "",
                    "",
                    total,
                    "",
                    "",
                )
            )
    return Table(
        ("method", "accuracy", "accepted tokens", "rejected", "judge", "total", "chunks forced"),
        [row[:7] for row in rows],
        note="Mean over problems. Forced: chunks taken although the judge refused every sample.",
    )


def selecting(data: RunData) -> Section:
    """Picks of training answers and the policies they make (paper section 5.2)."""
    picked, tuned = data.metrics("select"), data.metrics("finetune")
    section = Section(
        "selection",
        "Choosing training answers",
        "One answer a problem becomes training data: at random or by the judge's mean chunk score, "
        "without and with the answer key.",
        missing="" if picked or tuned else "select",
    )
    count, selected = number(tuned, "examples"), number(picked, "selected")
    rows = []
    # Only the embedded task has an oracle that knows every step.
    oracle = any(
        number(row, "every_step_right") is not None for row in mapping(picked, "picks").values()
    )
    for pick, title in PICKS.items():
        choice, after = mapping(picked, "picks", pick), mapping(tuned, "accuracy", pick)
        if choice or after:
            sound = Estimate.share(number(choice, "every_step_right"), selected)
            rows.append(
                (
                    title,
                    Estimate.share(number(choice, "right_answer"), selected),
                    *([sound] if oracle else []),
                    Estimate.normal(number(after, "mean"), number(after, "se")),
                    decimal(number(after, "tokens"), 1),
                )
            )
    differences = signed_rows(
        [
            (
                _difference_title(name),
                Estimate.normal(number(row, "mean"), number(row, "se"), share=False),
                "",
            )
            for name, row in mapping(tuned, "differences").items()
        ]
    )
    section.add(
        Table(
            (
                "picked by",
                "right answer",
                *(["every step right"] if oracle else []),
                "accuracy after fine-tuning",
                "tokens",
            ),
            rows,
            note=f"{whole(selected)} problems picked from, {whole(count)} answers trained on.",
        ),
        BarGroups(
            [Bars("Difference after fine-tuning, same problems", differences)]
            if differences
            else []
        ),
    )
    if picked and not tuned:
        section.missing = "finetune"
    return section


def _difference_title(name: str) -> str:
    parts = [PICKS.get(part.strip(), part.strip()) for part in name.split(" - ")]
    return " − ".join(parts)


def headline(data: RunData) -> list[Bars]:
    """The main results, each with its interval."""
    cards = []
    judges = mapping(data.metrics("evaluate"), "judges")
    rows = [
        Interval(judge_title(name), judge_colour(name, list(judges)), estimate)
        for name in ("start", "judge", "judge-discriminative")
        if (estimate := f1(mapping(judges, name), "official"))
    ]
    cards.append(
        Bars("Judge: F1 at finding the first wrong step", rows, "official protocol: by label")
    )
    solve = data.metrics("solve")
    ours = mapping(solve, "search", "judge")
    vote = mapping(ours, "majority_at_cost")
    rows = [
        Interval(title, colour, estimate)
        for title, colour, estimate in (
            ("plain sampling", PLAIN, _accuracy(mapping(solve, "plain"))),
            (f"majority of {whole(number(vote, 'votes'))}", MAJORITY, _accuracy(vote)),
            ("chunk-reset, StepWiser judge", 0, _accuracy(ours)),
        )
        if estimate
    ]
    tokens = number(ours, "total_tokens")
    note = ""
    if tokens is not None:
        majority, plain = number(vote, "total_tokens"), number(solve, "plain", "tokens")
        note = (
            f"tokens a problem: chunk-reset {tokens:.0f}, majority {whole(majority)}, "
            f"plain {whole(plain)}"
        )
    cards.append(Bars("Search: accuracy on fresh problems", rows, note))
    differences = mapping(data.metrics("finetune"), "differences")
    cards.append(
        Bars(
            "Training answers: gain of the judge's pick over a random one",
            signed_rows(
                [
                    (
                        title,
                        Estimate.normal(number(row, "mean"), number(row, "se"), share=False),
                        "",
                    )
                    for title, key in (
                        ("no answer key", "judge - random"),
                        ("among right answers", "judge_right - random_right"),
                    )
                    if (row := mapping(differences, key))
                ]
            ),
            "accuracy of the fine-tuned policy, paired by problem",
        )
    )
    return [card for card in cards if card.rows]
