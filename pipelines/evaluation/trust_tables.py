"""What `stepwiser evaluate` prints about trust, below the scores."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.monitoring.formatting import number, plus_minus, titled_table

Judges = dict[str, dict[str, Any]]


def print_trust(console: Console, metrics: dict[str, Any]) -> None:
    """Calibration, agreement, faithfulness, further sets and ranges, contamination."""
    judges: Judges = metrics["judges"]
    for table in (
        _calibration(judges),
        _reliability(judges),
        _agreement(judges),
        _margins(judges),
        _faithfulness(judges, metrics["repairs"]),
        _sets(judges, metrics, "more", "Further sets, one judgment a step"),
        _sets(
            judges, metrics, "beyond", "Written solutions within the training range and beyond it"
        ),
        _contamination(metrics["contamination"]),
    ):
        if table.row_count:
            console.print(table)


def _calibration(judges: Judges) -> Table:
    table = titled_table(
        "Calibration of the score", "judge", "ECE, labels", "Brier", "steps",
        "ECE, Monte-Carlo values", "Brier", "chunks",
    )  # fmt: skip
    for name, row in judges.items():
        cells = []
        for key in ("calibration", "calibration_values"):
            found = row[key] or {}
            cells += [
                number(found.get("ece")),
                number(found.get("brier")),
                str(found.get("count", 0)),
            ]
        table.add_row(name, *cells)
    return table


def _reliability(judges: Judges) -> Table:
    """Mean value of the chunks in each bin of the score; bins that nobody used are left out."""
    table = titled_table("Mean Monte-Carlo value by score (chunks)", "score", *judges)
    bins = [(row["calibration_values"] or {"table": []})["table"] for row in judges.values()]
    for i in range(max((len(rows) for rows in bins), default=0)):
        here = [rows[i] if rows else None for rows in bins]
        if any(row and row["count"] for row in here):
            first = next(row for row in here if row)
            table.add_row(
                f"{first['lower']:.1f} to {first['upper']:.1f}",
                *(
                    f"{row['mean_outcome']:.3f} ({row['count']})" if row and row["count"] else "-"
                    for row in here
                ),
            )
    return table


def _agreement(judges: Judges) -> Table:
    table = titled_table(
        "Agreement between votes on a step", "judge", "votes", "pairs that agree",
        "Fleiss' kappa", "all agree",
    )  # fmt: skip
    for name, row in judges.items():
        if found := row["agreement"]:
            table.add_row(
                name,
                str(found["votes"]),
                _bounded(found["pairwise"], found["pairwise_standard_error"]),
                _bounded(found["kappa"], found["kappa_standard_error"]),
                number(found["unanimous"]),
            )
    return table


def _margins(judges: Judges) -> Table:
    known = {name: row["agreement"]["margins"] for name, row in judges.items() if row["agreement"]}
    table = titled_table("Accuracy of the majority by its margin (steps)", "margin", *known)
    for margin in sorted({row["margin"] for rows in known.values() for row in rows}):
        cells = []
        for rows in known.values():
            row = next((row for row in rows if row["margin"] == margin), None)
            cells.append(f"{row['accuracy']:.3f} ({row['count']})" if row else "-")
        table.add_row(str(margin), *cells)
    return table


def _faithfulness(judges: Judges, repairs: bool) -> Table:
    table = titled_table(
        "Faithfulness: of steps judged rightly, verdict and analysis that follow an edit",
        "judge", "edit", "pairs", "judged rightly", "verdict follows", "analysis follows", "of",
    )  # fmt: skip
    if not repairs:
        table.caption = "nothing is repaired: no right step is known for a wrong one"
    for name, row in judges.items():
        for kind, found in row["faithfulness"]["kinds"].items():
            table.add_row(
                name,
                kind,
                str(found["pairs"]),
                str(found["asked"]),
                _share(found["verdict"]),
                _share(found["analysis"]),
                str(found["worked"]),
            )
    return table


def _share(found: dict[str, Any] | None) -> str:
    return _bounded(found["mean"], found["standard_error"]) if found else "-"


def _sets(judges: Judges, metrics: dict[str, Any], part: str, title: str) -> Table:
    """F1 by set; of further files also that of the main set, the average, and both protocols."""
    sizes: dict[str, dict[str, int]] = dict(metrics[part])
    columns = list(sizes)
    protocols = [("official", "")]
    if part == "more" and sizes:
        sizes = {metrics["set"]: metrics["items"], **sizes}
        protocols.append(("by_final_answer", ", by final answer"))
        columns = [*sizes, "average"]
    table = titled_table(title, "F1 (official)", *columns)
    for protocol, suffix in protocols if sizes else ():
        for name, row in judges.items():
            scores = {metrics["set"]: row, **row[part]}
            cells = [_f1(scores[key]["single"][protocol]) for key in sizes]
            if part == "more":
                cells.append(_f1(row["average"]["single"][protocol]) if row["average"] else "-")
            table.add_row(name + suffix, *cells)
    if sizes:
        counts = [f"{n['wrong']} / {n['right']}" for n in sizes.values()]
        table.add_row("(wrong / right solutions)", *counts)
    return table


def _f1(score: dict[str, Any]) -> str:
    return _bounded(score["f1"], score["f1_standard_error"])


def _contamination(found: dict[str, Any]) -> Table:
    table = titled_table(
        f"Problems also in training ({found['training_problems']} problems, "
        f"runs of {found['n']} words)",
        "evaluation set", "problems", "share a run", "word for word",
    )  # fmt: skip
    for name, row in found["sets"].items():
        table.add_row(name, str(row["problems"]), str(row["flagged"]), str(row["exact"]))
    for name, reason in found["not_compared"].items():
        table.add_row(f"{name}: not compared, {reason}", "-", "-", "-")
    return table


def _bounded(value: float | None, error: float | None) -> str:
    """A figure with its standard error; one of 0 is left out, for it bounds nothing."""
    return plus_minus(value, error or None)
