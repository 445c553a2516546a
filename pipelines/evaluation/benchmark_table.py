"""All judges against all benchmarks: gathered judge by judge, printed, and written as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pipelines.evaluation.items import heldout_labels
from pipelines.evaluation.judgements import JudgementCache
from pipelines.evaluation.trust import TrustChecks
from pipelines.monitoring.formatting import interval, known, titled_table
from pipelines.session.session import Session
from stepwiser.data.records import StepItem
from stepwiser.evaluation.benchmarks import BenchmarkScore, benchmark_score, to_csv, to_latex

OWN_LABELS = "held-out chunks"
CSV, LATEX = "reports/benchmarks.csv", "reports/benchmarks.tex"


class BenchmarkTable:
    """The sets of labelled steps, and the run's own held-out chunks where they have labels."""

    def __init__(self, session: Session, trust: TrustChecks, valued: Sequence[StepItem]) -> None:
        self._session = session
        self._trust = trust
        self._labels = heldout_labels(session)
        named = {name for name, _ in self._labels}
        self._valued = valued if any(item.id in named for item in valued) else []
        self._all_valued = valued
        self._scores: list[BenchmarkScore] = []

    def add(self, cache: JudgementCache) -> None:
        """Score one judge, whose judgements are there already."""
        config = self._session.config.evaluate
        for name, items in self._trust.sets(config.name).items():
            rows = self._trust.rows(cache, name, items, config)
            cost = cache.cost(*self._trust.place(cache, name, config), rows)
            self._scores.append(benchmark_score(cache.name, name, items, rows, cost))
        if self._valued:
            unit = f"{cache.unit}-valued"
            rows = cache.items("judgements", unit, self._all_valued, config.votes)
            cost = cache.cost("judgements", unit, rows)
            self._scores.append(
                benchmark_score(cache.name, OWN_LABELS, self._valued, rows, cost, self._labels)
            )

    def write(self) -> list[dict[str, Any]]:
        """CSV and LaTeX into `reports/`; returns the rows for the stage's metrics."""
        for name, text in ((CSV, to_csv(self._scores)), (LATEX, to_latex(self._scores))):
            with self._session.store.writing(name) as temporary:
                temporary.write_text(text, "utf-8")
        return [asdict(score) for score in self._scores]

    def print(self) -> None:
        """The table on the terminal, and where the files are."""
        self._session.console.print(self._table())
        self._session.console.print(
            f"benchmarks: {self._session.store.called(CSV)}, {LATEX}", soft_wrap=True
        )

    def _table(self) -> Table:
        priced = any(score.price for score in self._scores)
        columns = [
            "benchmark", "judge", "figure", "one judgment", "majority", "no verdict",
            "tokens / solution", "seconds / solution", *(["price"] if priced else []),
        ]  # fmt: skip
        left = ("benchmark", "judge", "figure")
        table = titled_table("Judges and benchmarks, 95% intervals", *columns, left=left)
        order = list(dict.fromkeys(score.benchmark for score in self._scores))
        for score in sorted(self._scores, key=lambda score: order.index(score.benchmark)):
            solutions = max(1, score.solutions)
            tokens = (score.generated_tokens + score.prompt_tokens) / solutions
            cells = [
                score.benchmark,
                score.judge,
                score.metric,
                interval(score.value, score.low, score.high),
                interval(score.majority, score.majority_low, score.majority_high),
                f"{score.no_verdict:.1%}",
                f"{tokens:.0f}",
                f"{score.seconds / solutions:.2f}",
            ]
            table.add_row(*cells, *([known(score.price or None, "{:.3g}")] if priced else []))
        return table
