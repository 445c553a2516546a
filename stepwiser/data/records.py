"""What the stages hand each other: one frozen dataclass each.

A list of rows becomes an Arrow table with `to_table` and comes back with `from_table`; the schema
is that of the fields and not inferred from rows, so that an empty unit has the same columns as a
full one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Self, get_type_hints

from stepwiser.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def content_id(*parts: object) -> str:
    """Name a thing by what it is: 16 hexadecimal digits of the hash of its parts."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode())
    return digest.hexdigest()[:16]


class Row:
    """A dataclass that goes to Parquet; each field's annotation says the Arrow type of its column.

    Ints have 64 bits, those in lists, which are token ids and votes, 32.
    """

    @classmethod
    @cache
    def schema(cls) -> pa.Schema:
        """Arrow schema, fields in declaration order."""
        import pyarrow as pa

        kinds: dict[Any, pa.DataType] = {
            str: pa.string(),
            bool: pa.bool_(),
            int: pa.int64(),
            float: pa.float64(),
            list[int]: pa.list_(pa.int32()),
            list[str]: pa.list_(pa.string()),
        }
        kinds |= {kind | None: arrow for kind, arrow in kinds.items()}
        hints = get_type_hints(cls)
        return pa.schema([(name, kinds[hints[name]]) for name in cls._names()])

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def to_table(cls, rows: Iterable[Self]) -> pa.Table:
        import pyarrow as pa

        rows = list(rows)
        # By column: a dict of every row, its lists copied, costs three times as much.
        columns = {name: [getattr(row, name) for row in rows] for name in cls._names()}
        return pa.Table.from_pydict(columns, schema=cls.schema())

    @classmethod
    def from_table(cls, table: pa.Table) -> list[Self]:
        """Rows of a table. Raises UserError where an older version wrote it with fewer columns,
        unless those have a default."""
        optional = {f.name for f in fields(cls) if f.default is not MISSING}  # type: ignore[arg-type]
        there = set(table.column_names)
        names = [name for name in cls._names() if name in there or name not in optional]
        if missing := [name for name in names if name not in table.column_names]:
            raise UserError(
                f"a table of {cls.__name__} lacks the columns {', '.join(missing)}: an older "
                "version wrote it; make it again in a new run_dir"
            )
        return [cls(**row) for row in table.select(names).to_pylist()]


@dataclass(frozen=True)
class Problem:
    """A problem with its reference answer."""

    problem_id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Trajectory(Row):
    """One response of the policy in chunks (paper section 3.1)."""

    trajectory_id: str
    problem_id: str
    question: str
    answer: str
    response_ids: list[int]
    """Sampled ids; prefixes are cut from these, never rendered again from text."""
    chunks: list[str]
    """Texts without tags; what follows the last tag belongs to the last chunk."""
    chunk_ends: list[int]
    """For each chunk, how many leading response ids contain it and its closing tag."""
    final_answer: str | None
    correct: bool
    problem_successes: int
    """Right responses of the same problem, out of `problem_trials`: Q before the first chunk."""
    problem_trials: int
    """Responses that could be checked."""


Q0 = -1
"""Chunk index of a `ChunkValue` that is the value before the first chunk."""


@dataclass(frozen=True)
class ChunkValue(Row):
    """Monte-Carlo value of the prefix that ends in one chunk (paper section 3.2)."""

    trajectory_id: str
    problem_id: str
    chunk_index: int
    successes: int
    trials: int
    """Completions that could be checked; fewer than `planned` where stopped early."""
    truncated: int
    """Rollouts cut at the token limit; counted as failures, and here."""
    unverifiable: int
    """Further rollouts, whose answer could not be checked: neither successes nor failures."""
    generated_tokens: int
    is_outcome: bool
    """The prefix already holds the final answer: its value is the outcome, no rollouts."""
    planned: int
    """Completions that the labels are about, whether or not all were needed to know them: those
    asked for (annotate.rollouts) less the unverifiable ones."""
    error_bound: float
    """Largest probability that a label read from these counts is not that of all planned
    completions; 0 where only what they cannot change is read (stopping: fixed, exact)."""
    first_successes: int
    first_trials: int
    """The first wave, made whatever came of it; all completions where stopping is fixed."""
    q_low: float
    q_high: float
    """Wilson interval of the true value, 95 %, from `successes` of `trials`; the outcome itself
    where it is known. Stopping early does not break it: it covered 95 to 98 % in simulations."""

    @property
    def mean(self) -> float:
        """Share of successes; biased where the prefix was stopped early, by up to 0.04 on average
        in simulations, since most stop on a run of successes."""
        return self.successes / self.trials

    @property
    def unbiased_mean(self) -> float:
        """Share of successes in the first wave: noisier, but right on average."""
        return self.first_successes / self.first_trials


@dataclass(frozen=True)
class JudgePrompt(Row):
    """One labelled chunk, ready for training (paper section 3.3)."""

    prompt_id: str
    trajectory_id: str
    problem_id: str
    question: str
    history: list[str]
    chunk: str
    chunk_index: int
    label: bool
    rule: str
    value: float
    previous_value: float
    trials: int
    split: str
    """`train`, `heldout`, or `spare` (dropped by balancing, kept for the record)."""


@dataclass(frozen=True)
class StepItem(Row):
    """A solution in ProcessBench's own format."""

    id: str
    problem: str
    steps: list[str]
    label: int
    """Index of the first wrong step, -1 where every step is right."""
    final_answer_correct: bool
    generator: str
    wrong_steps: list[int] | None = None
    """Indices of all wrong steps, rising, where somebody labelled every step; else unknown."""
    category: str = ""
    """The kind of its mistakes, where the set has kinds."""


@dataclass(frozen=True)
class Judgement(Row):
    """What a judge said of one step of one item, all votes."""

    item_id: str
    judge: str
    step_index: int
    votes: list[int]
    """1 Positive, 0 Negative, -1 no verdict."""
    verdict: bool | None
    score: float | None
    analysis: str
    tokens: int
    truncated: int
    prompt_tokens: int = 0
    failed: int = 0
    """Votes that could not be asked for; they have no verdict."""


def group_by(rows: Sequence[Any], key: str) -> dict[Any, list[Any]]:
    """Rows by the value of one attribute, in order of first appearance."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return groups
