"""Judgements of one judge, part by part: a part that an earlier start finished is read, not asked.

What a part was asked is written into its file: other weights, items or settings ask it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.session.session import Session
from stepwiser.data.records import Judgement, StepItem, content_id
from stepwiser.evaluation.benchmarks import Cost
from stepwiser.evaluation.faithfulness import Question, ask
from stepwiser.evaluation.scoring import judge_items
from stepwiser.judging.judges import Judge

ASKED = b"asked"
"""Key of the file's metadata that says what the judgements are of."""
SECONDS = b"seconds"
"""Key of the time that asking took, loading aside."""

Judging = Coroutine[Any, Any, list[Judgement]]
T = TypeVar("T")


@dataclass
class JudgementCache:
    """One judge and what it has said; its engines are loaded when something has to be asked."""

    session: Session
    name: str
    weights: str
    """Which weights answer (`JudgeSpec.weights`)."""
    kind: str
    """How it is asked, in words."""
    judge: Callable[[int], Judge]
    """Gives the judge, for so many votes a step."""
    prices: tuple[float, float] = (0.0, 0.0)
    """Of a million tokens read and written."""
    prompt_tokens: int = 0
    """Read in this start."""
    _seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    _known: dict[tuple[str, str, bytes], list[Judgement]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The name of its files."""
        return self.name.replace(", ", "-")

    def cost(self, table: str, unit: str, rows: Sequence[Judgement]) -> Cost:
        """What rows have cost that `items` or `questions` gave."""
        read, written = (sum(getattr(r, key) for r in rows) for key in ("prompt_tokens", "tokens"))
        price = (read * self.prices[0] + written * self.prices[1]) / 1e6
        return Cost(self._seconds.get((table, unit), 0.0), written, read, price)

    def items(
        self, table: str, unit: str, items: Sequence[StepItem], votes: int
    ) -> list[Judgement]:
        """Every step of every solution, judged."""
        content = content_id(*((i.id, i.problem, *i.steps) for i in items))
        return self._rows(table, unit, votes, content, items, judge_items)

    def questions(
        self, table: str, unit: str, questions: Sequence[Question], votes: int
    ) -> list[Judgement]:
        """Single steps, judged; rows carry the question's id as item."""
        return self._rows(table, unit, votes, content_id(*questions), questions, ask)

    def _rows(
        self,
        table: str,
        unit: str,
        votes: int,
        content: str,
        items: Sequence[T],
        work: Callable[[Judge, str, Sequence[T], Callable[[], None]], Judging],
    ) -> list[Judgement]:
        if not items:
            return []
        config = self.session.config
        asked = content_id(
            self.weights,
            self.kind,
            votes,
            config.evaluate.temperature,
            config.judge_max_tokens,
            content,
        ).encode()
        if (table, unit, asked) not in self._known:
            self._known[table, unit, asked] = self._read_or_ask(
                table, unit, asked, items, lambda j, done: work(j, self.name, items, done), votes
            )
        return self._known[table, unit, asked]

    def _read_or_ask(
        self,
        table: str,
        unit: str,
        asked: bytes,
        items: Sequence[Any],
        work: Callable[[Judge, Callable[[], None]], Judging],
        votes: int,
    ) -> list[Judgement]:
        import pyarrow.parquet as pq

        seconds = 0.0
        path = self.session.store.file(f"{table}/{unit}.parquet")
        if path.is_file():
            kept = pq.read_table(path)
            said = kept.schema.metadata or {}
            if said.get(ASKED) == asked:
                rows = Judgement.from_table(kept)
                seconds = float(said.get(SECONDS, b"0"))
                # A request that failed may do better now; those that did not are not sent again.
                if not any(row.failed for row in rows):
                    self._seconds[table, unit] = seconds
                    return rows
        judge = self.judge(votes)
        title = f"{self.name}: {Path(table).name}" if table != "judgements" else unit
        with self.session.progress(title, len(items), "judged") as bar:
            done = lambda: bar.update(advance=1)  # noqa: E731
            began = time.monotonic()
            rows = self.session.run(work(judge, done))
        seconds += time.monotonic() - began
        self.prompt_tokens += sum(row.prompt_tokens for row in rows)
        self._seconds[table, unit] = seconds
        said = {ASKED: asked, SECONDS: f"{seconds:.3f}".encode()}
        made = Judgement.to_table(rows).replace_schema_metadata(said)
        self.session.store.write_table(table, unit, made)
        return rows
