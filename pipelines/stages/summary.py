"""The result table that `quickstart` ends with."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipelines.monitoring.formatting import plus_minus, titled_table

Row = tuple[str, str, str]


def print_summary(console: Console, stages: dict[str, Any]) -> None:
    """What the judge learned and what it is good for, in one table, and where the report is."""
    columns = ("", "figure", "compare")
    table = titled_table("Results", *columns, left=columns)
    rows = [
        row
        for needed, figures in (
            (("annotate", "label"), _policy),
            (("evaluate",), _judge),
            (("solve", "finetune"), _use),
        )
        if stages.keys() >= set(needed)
        for row in figures(stages)
    ]
    for row in rows:
        table.add_row(*row)
    if rows:
        console.print(table)
    console.print(f"report: {stages['report']['path']}", soft_wrap=True)


def _policy(stages: dict[str, Any]) -> list[Row]:
    counts = stages["annotate"]["counts"]
    rate = counts["right_responses"] / counts["responses"]
    rows = [("policy pass@1", f"{rate:.3f}", f"{counts['responses']} responses")]
    for rule in stages["label"]["rules"]:
        if rule["rule"] == stages["label"]["rule"] and rule["oracle_agreement"] is not None:
            agreement = f"{rule['oracle_agreement']:.3f}"
            rows.append(("labels agree with the oracle", agreement, f"rule {rule['rule']}"))
    return rows


def _judge(stages: dict[str, Any]) -> list[Row]:
    judges = {name: row["single"]["official"] for name, row in stages["evaluate"]["judges"].items()}
    if "judge" not in judges:
        return []
    others = [
        f"{name} {plus_minus(row['f1'], row['f1_standard_error'])}"
        for name, row in judges.items()
        if name != "judge"
    ]
    row = judges["judge"]
    figure = plus_minus(row["f1"], row["f1_standard_error"])
    return [("judge F1 (ProcessBench, official)", figure, "\n".join(others))]


def _use(stages: dict[str, Any]) -> list[Row]:
    solve, tuned = stages["solve"], stages["finetune"]["accuracy"]
    reset = solve["search"].get("judge")
    rows = []
    if reset:
        vote = reset["majority_at_cost"]
        rows.append(
            (
                "solving with chunk-reset",
                plus_minus(reset["accuracy"], reset["accuracy_se"]),
                f"plain {plus_minus(solve['plain']['accuracy'], solve['plain']['accuracy_se'])}\n"
                f"majority, same tokens {plus_minus(vote['accuracy'], vote['accuracy_se'])}",
            )
        )
    for pick, other, title in (
        ("judge", "random", "fine-tuned on the judge's pick, no answer key"),
        ("judge_right", "random_right", "fine-tuned on its pick among right answers"),
    ):
        rows.append(
            (
                title,
                plus_minus(tuned[pick]["mean"], tuned[pick]["se"]),
                f"random {plus_minus(tuned[other]['mean'], tuned[other]['se'])}",
            )
        )
    return rows
