"""Section of the labels: what the rules say, and whether they would say it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepwiser.annotation.label_rules import DEFINITIONS
from stepwiser.report.blocks import ABSENT, Bar, Facts, Section, Table, decimal, percent, whole
from stepwiser.report.reading import RunData, mapping, number, rows_of

RULES = {str(rule): definition.title for rule, definition in DEFINITIONS.items()}


def labels(data: RunData) -> Section:
    """Class shares of the rules, before and after balancing (paper sections 3.2 and 3.3)."""
    metrics = data.metrics("label")
    section = Section(
        "labels",
        "Labels",
        "Values become Positive or Negative by one rule; then the classes are made equal.",
        missing="" if metrics else "label",
    )
    if not metrics:
        return section
    rule = str(metrics.get("rule", ABSENT))
    rows = []
    for split, title in (("train", "training"), ("heldout", "held out")):
        for when, words in (("before", "before balancing"), ("after", "after")):
            row = mapping(metrics, f"{split}_{when}")
            if row:
                share = number(row, "positive_share")
                rows.append(
                    (
                        f"{title}, {words}",
                        whole(number(row, "positive")),
                        whole(number(row, "negative")),
                        Bar(share, percent(share)),
                    )
                )
    section.add(
        Table(
            ("split", "Positive", "Negative", "share Positive"),
            rows,
            title=f"Prompts by {RULES.get(rule, rule)}",
        )
    )
    compared: list[tuple[Any, ...]] = []
    oracle = any(number(row, "oracle_agreement") is not None for row in rows_of(metrics, "rules"))
    for row in rows_of(metrics, "rules"):
        name = str(row.get("rule", ABSENT))
        share, agree = number(row, "positive_share"), number(row, "oracle_agreement")
        title = RULES.get(name, name) + (" (used)" if name == rule else "")
        cells = (title, Bar(share, percent(share)), Bar(agree, decimal(agree)))
        compared.append(cells if oracle else cells[:2])
    section.add(
        Table(
            ("rule", "share Positive", "agrees with the oracle")[: 3 if oracle else 2],
            compared,
            title="The three rules on the same values",
            note="The oracle knows the embedded task's steps; compared up to the first wrong one."
            if oracle
            else "",
        ),
    )
    disputed = number(metrics, "disputed")
    critic = mapping(metrics, "critic")
    if critic:
        section.add(_critic(critic))
    if repeats := rows_of(metrics, "repeats"):
        section.add(_repeats(repeats))
    section.add(
        Facts(
            [
                ("labelled chunks", whole(number(metrics, "chunks"))),
                ("too long for a prompt", whole(number(metrics, "too_long"))),
                *([("left out, as rules differ", whole(disputed))] if disputed else []),
                *(
                    [("left out, as the critic contradicts", whole(number(critic, "left_out")))]
                    if critic
                    else []
                ),
                ("problems", whole(number(metrics, "problems"))),
                ("problems held out", whole(number(metrics, "heldout_problems"))),
            ]
        ),
    )
    return section


def _critic(row: Mapping[str, Any]) -> Table:
    """Whether a reader of the steps gives the labels that rollouts do."""
    share, low, high = (number(row, key) for key in ("agreement", "low", "high"))
    bounds = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    cells = (
        str(row.get("critic", ABSENT)),
        f"{whole(number(row, 'verdicts'))} of {whole(number(row, 'chunks'))}",
        Bar(share, decimal(share)),
        bounds,
        decimal(number(row, "kappa")),
        percent(number(row, "passed_positive")),
        percent(number(row, "found_negative")),
    )
    heads = ("critic", "verdicts", "same as label", "95% interval", "kappa")
    return Table(
        (*heads, "Positive called so", "Negative called so"),
        [cells],
        title="A critic of the labels",
        note="It reads the chunk and knows nothing of rollouts. Chunks whose label it contradicts "
        "are left out; where it gives no verdict the label stays.",
    )


def _repeats(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Whether rollouts label a chunk the same way twice, by how many there are."""
    cells = []
    for row in rows:
        share, low, high = (number(row, key) for key in ("agreement", "low", "high"))
        bounds = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        name = str(row.get("rule", ABSENT))
        cells.append(
            (
                RULES.get(name, name),
                whole(number(row, "rollouts")),
                whole(number(row, "chunks")),
                Bar(share, decimal(share)),
                bounds,
                decimal(number(row, "kappa")),
            )
        )
    return Table(
        ("rule", "rollouts", "chunks", "same label", "95% interval", "kappa"),
        cells,
        title="Chunks annotated twice",
        note="Each time with rollouts of its own. Two labels that agree need not be right; two "
        "that do not hang on chance, which no judge can learn. Kappa is agreement beyond chance.",
    )
