"""The section about training answers that the judge chose, and the headline."""

from __future__ import annotations

from stepwiser.report.blocks import (
    Estimate,
    Section,
    Table,
    decimal,
    judge_colour,
    judge_title,
    whole,
)
from stepwiser.report.drawing.figures import BarGroups, Bars, Interval, signed_rows
from stepwiser.report.judges import f1
from stepwiser.report.reading import RunData, mapping, number
from stepwiser.report.solving import MAJORITY, PLAIN, accuracy_of

PICKS = {
    "policy": "policy before",
    "random": "random answer",
    "judge": "judge's pick",
    "random_right": "random right answer",
    "judge_right": "judge's pick of the right ones",
}


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
            ("plain sampling", PLAIN, accuracy_of(mapping(solve, "plain"))),
            (f"majority of {whole(number(vote, 'votes'))}", MAJORITY, accuracy_of(vote)),
            ("chunk-reset, StepWiser judge", 0, accuracy_of(ours)),
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
