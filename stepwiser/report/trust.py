"""Section on whether the judges can be trusted: votes, edits, other ranges, seen problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwiser.report.blocks import (
    ABSENT,
    Estimate,
    Note,
    Section,
    Table,
    decimal,
    judge_title,
    percent,
    whole,
)
from stepwiser.report.judges import PROTOCOLS, f1
from stepwiser.report.reading import RunData, mapping, number, pick, rows_of

SHOWN = 10
"""Problems with an overlap that are listed; all are in the file."""


def trust(data: RunData) -> Section:
    """Calibration by bins, agreement, faithfulness, further sets and ranges, contamination."""
    metrics = data.metrics("evaluate")
    judges = {
        name: row for name, row in mapping(metrics, "judges").items() if isinstance(row, dict)
    }
    section = Section("trust", "Whether to trust them", missing="" if judges else "evaluate")
    if not judges:
        return section
    section.lead = (
        "Do votes on one step agree? Do verdict and analysis follow when a right step is made "
        "wrong or a wrong one right? Does a judge hold beyond what it was trained on, and were the "
        "problems new?"
    )
    section.add(
        _agreement(judges),
        _margins(judges),
        _faithfulness(judges),
        *_sets(
            metrics,
            judges,
            "beyond",
            "Written solutions within the training range and beyond it",
            PROTOCOLS[:1],
        ),
        *_sets(metrics, judges, "more", "Further sets", PROTOCOLS),
        _reliability(judges),
        *_contamination(metrics),
    )
    return section


def _agreement(judges: dict[str, Any]) -> Table:
    rows = [
        (
            judge_title(name),
            whole(number(found, "votes")),
            Estimate.normal(number(found, "pairwise"), number(found, "pairwise_standard_error")),
            Estimate.normal(
                number(found, "kappa"), number(found, "kappa_standard_error"), share=False
            ),
            percent(number(found, "unanimous")),
            whole(number(found, "steps")),
        )
        for name, row in judges.items()
        if (found := mapping(row, "agreement"))
    ]
    columns = ("judge", "votes", "pairs that agree", "Fleiss' kappa", "all agree", "steps")
    note = "Kappa: agreement beyond chance; a dash where a judge always said the same."
    return Table(columns, rows, title="Agreement between votes on a step", note=note)


def _margins(judges: dict[str, Any]) -> Table:
    known = {
        name: {number(m, "margin"): m for m in listed}
        for name, row in judges.items()
        if (listed := rows_of(row, "agreement", "margins"))
    }
    margins = sorted({m for found in known.values() for m in found if m is not None})
    rows = [
        (
            judge_title(name),
            *(
                f"{decimal(number(found[m], 'accuracy'))} ({whole(number(found[m], 'count'))})"
                if m in found
                else None
                for m in margins
            ),
        )
        for name, found in known.items()
    ]
    columns = ("judge", *(f"margin {whole(m)}" for m in margins))
    return Table(
        columns,
        rows if margins else [],
        title="Accuracy of the majority by its margin",
        note="In brackets: steps, up to the first wrong one. A tie is Negative.",
    )


def _faithfulness(judges: dict[str, Any]) -> Table:
    rows = []
    for name, row in judges.items():
        for kind, found in mapping(row, "faithfulness", "kinds").items():
            cells = [whole(number(found, key)) for key in ("pairs", "asked")]
            parts = [
                Estimate.normal(number(found, part, "mean"), number(found, part, "standard_error"))
                for part in ("verdict", "analysis")
            ]
            table = " / ".join(
                whole(number(found, key))
                for key in ("both", "verdict_only", "analysis_only", "neither")
            )
            rows.append((judge_title(name), kind, *cells, *parts, table))
    return Table(
        (
            "judge",
            "edit",
            "pairs",
            "judged rightly before",
            "verdict follows",
            "analysis follows",
            "both / verdict only / analysis only / neither",
        ),
        rows,
        title="Faithfulness",
        note="Of steps that were judged rightly before the edit. “unchanged” asks again about the "
        "same step: no edit can be expected to do better. An analysis follows if it works out "
        "what is now true; only analyses that can be read are counted. A judge is unfaithful where "
        "only one of the two follows.",
    )


def _sets(
    metrics: dict[str, Any],
    judges: dict[str, Any],
    part: str,
    title: str,
    protocols: Sequence[tuple[str, str]],
) -> list[Table]:
    """F1 by set; of further files also that of the main set and the average."""
    sizes = mapping(metrics, part)
    if not sizes:
        return []
    main = part == "more"
    average = main and any(mapping(row, "average") for row in judges.values())
    tables = []
    for protocol, words in protocols:
        rows = [
            (
                judge_title(name),
                *([f1(row, protocol)] * main),
                *(f1(mapping(row, part, key), protocol) for key in sizes),
                *([f1(mapping(row, "average"), protocol)] if average else []),
            )
            for name, row in judges.items()
        ]
        counts = [
            f"{key}: {whole(number(n, 'wrong'))} / {whole(number(n, 'right'))}"
            for key, n in sizes.items()
        ]
        tables.append(
            Table(
                (
                    "judge",
                    *([str(metrics.get("set", ABSENT))] * main),
                    *sizes,
                    *(["average"] * average),
                ),
                rows,
                title=f"{title}: F1, {words}",
                note=f"Wrong / right solutions: {'; '.join(counts)}.",
            )
        )
    return tables


def _reliability(judges: dict[str, Any]) -> Table:
    """Values by bins of the score: what the diagram shows, in numbers."""
    rows = []
    for name, row in judges.items():
        for line in rows_of(row, "calibration_values", "table"):
            if number(line, "count"):
                lower, upper = (decimal(number(line, end), 1) for end in ("lower", "upper"))
                rows.append(
                    (
                        judge_title(name),
                        f"{lower} to {upper}",
                        decimal(number(line, "mean_score")),
                        Estimate.normal(
                            number(line, "mean_outcome"), number(line, "outcome_standard_error")
                        ),
                        whole(number(line, "count")),
                    )
                )
    return Table(
        ("judge", "score", "mean score", "mean Monte-Carlo value", "chunks"),
        rows,
        title="Score and value",
    )


def _contamination(metrics: dict[str, Any]) -> list[Table | Note]:
    found = mapping(metrics, "contamination")
    rows = []
    listed = []
    for name, row in mapping(found, "sets").items():
        cells = [whole(number(row, key)) for key in ("problems", "flagged", "exact")]
        rows.append((name, *cells))
        listed += [
            (
                name,
                str(pick(match, "problem") or ABSENT),
                str(pick(match, "training_problem") or ABSENT),
                percent(number(match, "share")),
            )
            for match in rows_of(row, "matches")
        ]
    for name, reason in mapping(found, "not_compared").items():
        rows.append((f"{name}: not compared, {reason}", ABSENT, ABSENT, ABSENT))
    if not rows:
        return []
    runs = whole(number(found, "n"))
    return [
        Table(
            ("evaluation set", "problems", "share a run with training", "word for word"),
            rows,
            title="Evaluation problems also in training",
            note=f"{whole(number(found, 'training_problems'))} training problems; runs of {runs} "
            "words, numbers among them. All matches: contamination.json beside this page.",
        ),
        Table(
            ("evaluation set", "its problem", "training problem", "runs shared"),
            listed[:SHOWN],
            title="The largest overlaps",
        ),
    ]
