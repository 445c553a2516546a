"""Annotated solutions of a run directory, a few at a time, however many there are."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from stepwiser.data.records import ChunkValue, JudgePrompt, Trajectory
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore

if TYPE_CHECKING:
    import pyarrow as pa

Outcome = Literal["any", "right", "wrong"]
MOST_SOLUTIONS = 50
"""Of one answer."""


class Value(BaseModel):
    """The Monte-Carlo value of the prefix that ends in a chunk, and the rollouts behind it."""

    mean: float
    successes: int
    trials: int = Field(description="Rollouts that could be checked.")
    planned: int = Field(description="Rollouts that were asked for, where none was saved.")
    first_successes: int
    first_trials: int = Field(description="Of the first wave, made whatever came of it.")
    truncated: int = Field(description="Cut at the token limit; among those that failed.")
    unverifiable: int = Field(description="Further ones, whose answer could not be checked.")
    tokens: int = Field(description="0 where another solution with this prefix has paid them.")
    low: float = Field(description="Lower end of the 95 % interval of the value.")
    high: float
    is_outcome: bool = Field(description="The final answer is known: no rollouts were needed.")


class LabelledChunk(BaseModel):
    """One chunk of an annotated solution."""

    text: str
    value: Value | None = Field(description="Null where labels did not need it.")
    label: bool | None = Field(description="Of the run's label rule; null before `label` has run.")


class LabelledSolution(BaseModel):
    """One annotated solution."""

    id: str
    problem: str
    answer: str
    final_answer: str | None
    correct: bool
    start_successes: int = Field(description="Right responses to the problem: Q before any chunk.")
    start_trials: int
    chunks: list[LabelledChunk]


class LabelledSolutions(BaseModel):
    """A part of a run's solutions."""

    name: str = Field(description="Of the run directory.")
    total: int = Field(description="Solutions with this outcome.")
    offset: int
    solutions: list[LabelledSolution]


@dataclass(frozen=True)
class _Place:
    file: Path
    row: int
    correct: bool


class LabelledRun:
    """The solutions of one run directory, which may still grow."""

    def __init__(self, root: Path) -> None:
        """Raises UserError where no solution is annotated yet."""
        self._store = RunStore(root)
        self.name = root.resolve().name
        self._lock = threading.Lock()
        self._places: dict[Path, list[_Place]] = {}
        if not self._files():
            raise UserError(
                f"serve.run={root}: holds no annotated solutions; give the directory of a run "
                "whose stage annotate has begun, or leave serve.run out"
            )

    def solutions(self, offset: int, limit: int, outcome: Outcome) -> LabelledSolutions:
        """From the ``offset``-th on; reads files. Raises UserError for one that is not whole."""
        with self._lock:
            for file in self._files():
                if file not in self._places:
                    self._places[file] = self._index(file)
        every = [place for file in sorted(self._places) for place in self._places[file]]
        if outcome != "any":
            every = [place for place in every if place.correct == (outcome == "right")]
        chosen = every[offset : offset + limit]
        by_file: dict[Path, list[int]] = {}
        for place in chosen:
            by_file.setdefault(place.file, []).append(place.row)
        found: list[LabelledSolution] = []
        for file, rows in by_file.items():
            found += self._read(file, rows)
        return LabelledSolutions(name=self.name, total=len(every), offset=offset, solutions=found)

    def _files(self) -> list[Path]:
        """Tables of units that are complete, which their summary says."""
        done = {file.stem for file in self._store.table_dir("units").glob("*.json")}
        tables = sorted(self._store.table_dir("trajectories").glob("*.parquet"))
        return [file for file in tables if file.stem in done]

    def _index(self, file: Path) -> list[_Place]:
        column = _read(file, columns=["correct"]).column("correct").to_pylist()
        return [_Place(file, row, correct) for row, correct in enumerate(column)]

    def _read(self, file: Path, rows: Sequence[int]) -> list[LabelledSolution]:
        trajectories = Trajectory.from_table(_read(file).take(list(rows)))
        ids = [trajectory.trajectory_id for trajectory in trajectories]
        of_these = [("trajectory_id", "in", ids)]
        values = ChunkValue.from_table(
            _read(self._store.table_dir("values") / file.name, filters=of_these)
        )
        by_chunk = {(row.trajectory_id, row.chunk_index): _value(row) for row in values}
        labels = {
            (row.trajectory_id, row.chunk_index): row.label
            for table in sorted(self._store.table_dir("judge_prompts").glob("*.parquet"))
            for row in JudgePrompt.from_table(_read(table, filters=of_these))
        }
        return [_solution(trajectory, by_chunk, labels) for trajectory in trajectories]


def _solution(
    row: Trajectory,
    values: Mapping[tuple[str, int], Value],
    labels: Mapping[tuple[str, int], bool],
) -> LabelledSolution:
    keys = [(row.trajectory_id, index) for index in range(len(row.chunks))]
    return LabelledSolution(
        id=row.trajectory_id,
        problem=row.question,
        answer=row.answer,
        final_answer=row.final_answer,
        correct=row.correct,
        start_successes=row.problem_successes,
        start_trials=row.problem_trials,
        chunks=[
            LabelledChunk(text=text, value=values.get(key), label=labels.get(key))
            for text, key in zip(row.chunks, keys, strict=True)
        ],
    )


def _value(row: ChunkValue) -> Value:
    return Value(
        mean=row.mean,
        successes=row.successes,
        trials=row.trials,
        planned=row.planned,
        first_successes=row.first_successes,
        first_trials=row.first_trials,
        truncated=row.truncated,
        unverifiable=row.unverifiable,
        tokens=row.generated_tokens,
        low=row.q_low,
        high=row.q_high,
        is_outcome=row.is_outcome,
    )


def _read(
    file: Path,
    columns: list[str] | None = None,
    filters: list[tuple[str, str, list[str]]] | None = None,
) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns, filters=filters)
    except (OSError, ValueError, pa.ArrowException) as error:
        # Without the folder, which is nobody's affair who asks over HTTP.
        raise UserError(
            f"{file.parent.name}/{file.name} of the run cannot be read ({type(error).__name__}); "
            "run the stage that makes it again"
        ) from error
