"""Judgements of one judge, part by part: a part that an earlier start finished is read, not asked.

What a part was asked is written into its file: other weights, items or settings ask it again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.session.session import Session
from stepwiser.data.records import Judgement, StepItem, content_id
from stepwiser.evaluation.faithfulness import Question, ask
from stepwiser.evaluation.scoring import judge_items
from stepwiser.judging.judges import Judge
from stepwiser.run.units import weights_id

ASKED = b"asked"
"""Key of the file's metadata that says what the judgements are of."""

Judging = Coroutine[Any, Any, list[Judgement]]
T = TypeVar("T")


@dataclass
class JudgementCache:
    """One judge and what it has said; its engines are loaded when something has to be asked."""

    session: Session
    name: str
    model: str
    kind: str
    """How it is asked, in words."""
    judge: Callable[[int], Judge]
    """Makes the judge, for so many votes a step."""
    _judges: dict[int, Judge] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The name of its files."""
        return self.name.replace(", ", "-")

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
        import pyarrow.parquet as pq

        config = self.session.config
        asked = content_id(
            weights_id(self.model),
            self.kind,
            votes,
            config.evaluate.temperature,
            config.judge_max_tokens,
            content,
        ).encode()
        path = self.session.store.table_dir(table) / f"{unit}.parquet"
        if path.is_file():
            kept = pq.read_table(path)
            if (kept.schema.metadata or {}).get(ASKED) == asked:
                return Judgement.from_table(kept)
        if votes not in self._judges:
            self._judges[votes] = self.judge(votes)
        title = f"{self.name}: {Path(table).name}" if table != "judgements" else unit
        with self.session.progress(title, len(items), "judged") as bar:
            done = lambda: bar.update(advance=1)  # noqa: E731
            rows = self.session.run(work(self._judges[votes], self.name, items, done))
        made = Judgement.to_table(rows).replace_schema_metadata({ASKED: asked})
        self.session.store.write_table(table, unit, made)
        return rows
