"""What the collector hands the learner, and what supervised fine-tuning reads.

Both are columns of numbers, not lists of objects: Ray's object store hands numpy columns to every
learner rank without a copy, and a step of the paper (4,096 sequences of up to 6,192 tokens) would
cost seconds to unpickle as Python integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepwiser.errors import UserError

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Experience:
    """One sampled judge response and what it earned."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """As sampled: the end-of-sequence id is the last one when it was sampled."""
    advantage: float
    reward: float
    group: int
    """Samples of one prompt share a group; any integer that is unique within the batch."""
    weight_version: int
    engine_logprobs: Sequence[float] | None = None
    """Log-prob of each response token as the engine sampled it, at the sampling temperature."""


@dataclass(frozen=True)
class ExperienceBatch:
    """One step's experience as columns; sequence i owns tokens offsets[i]:offsets[i + 1]."""

    prompt_ids: Ints
    prompt_offsets: Offsets
    response_ids: Ints
    response_offsets: Offsets
    engine_logprobs: Floats | None
    """One value a response token, or None when the engine gave none."""
    advantages: Floats
    rewards: Floats
    groups: Ints
    weight_versions: Ints

    @classmethod
    def from_experiences(cls, experiences: Sequence[Experience]) -> ExperienceBatch:
        """Raises ValueError for an empty response or log-probs that do not match it."""
        with_logprobs = [e for e in experiences if e.engine_logprobs is not None]
        if with_logprobs and len(with_logprobs) != len(experiences):
            raise ValueError(
                f"{len(with_logprobs)} of {len(experiences)} sequences carry engine log-probs; "
                "all or none must"
            )
        for position, e in enumerate(experiences):
            if not len(e.prompt_ids) or not len(e.response_ids):
                raise ValueError(
                    f"sequence {position} has {len(e.prompt_ids)} prompt and "
                    f"{len(e.response_ids)} response tokens; both need at least one"
                )
            if e.engine_logprobs is not None and len(e.engine_logprobs) != len(e.response_ids):
                raise ValueError(
                    f"sequence {position} has {len(e.response_ids)} response tokens but "
                    f"{len(e.engine_logprobs)} engine log-probs"
                )
        prompts, prompt_offsets = _columns(e.prompt_ids for e in experiences)
        responses, response_offsets = _columns(e.response_ids for e in experiences)
        logprobs = None
        if with_logprobs:
            logprobs = np.concatenate(
                [np.asarray(e.engine_logprobs, dtype=np.float32) for e in experiences]
            )
        return cls(
            prompt_ids=prompts,
            prompt_offsets=prompt_offsets,
            response_ids=responses,
            response_offsets=response_offsets,
            engine_logprobs=logprobs,
            advantages=np.array([e.advantage for e in experiences], dtype=np.float32),
            rewards=np.array([e.reward for e in experiences], dtype=np.float32),
            groups=np.array([e.group for e in experiences], dtype=np.int32),
            weight_versions=np.array([e.weight_version for e in experiences], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.advantages)

    @property
    def response_lengths(self) -> Offsets:
        return np.diff(self.response_offsets)

    @property
    def lengths(self) -> Offsets:
        """Prompt and response tokens of each sequence."""
        return np.diff(self.prompt_offsets) + self.response_lengths

    def prompt(self, index: int) -> Ints:
        return self.prompt_ids[self.prompt_offsets[index] : self.prompt_offsets[index + 1]]

    def response(self, index: int) -> Ints:
        return self.response_ids[self.response_offsets[index] : self.response_offsets[index + 1]]

    def logprobs(self, index: int) -> Floats | None:
        """Engine log-probs of one response."""
        if self.engine_logprobs is None:
            return None
        return self.engine_logprobs[self.response_offsets[index] : self.response_offsets[index + 1]]


@dataclass(frozen=True)
class TokenExamples:
    """Token sequences with a loss mask; a token is learned where its mask is 1."""

    token_ids: Ints
    loss_mask: npt.NDArray[np.int8]
    offsets: Offsets

    @classmethod
    def from_pairs(
        cls, pairs: Iterable[tuple[Sequence[int], Sequence[int | bool]]]
    ) -> TokenExamples:
        """Build from (token ids, loss mask) pairs. Raises ValueError where they cannot train."""
        materialised = list(pairs)
        for position, (ids, mask) in enumerate(materialised):
            if len(ids) != len(mask):
                raise ValueError(f"example {position}: {len(ids)} tokens but {len(mask)} mask bits")
            if not any(mask[1:]):
                raise ValueError(
                    f"example {position} has no token to learn: the mask is 0 everywhere after "
                    "the first token"
                )
        tokens, offsets = _columns(ids for ids, _ in materialised)
        masks = [np.asarray(mask, dtype=np.int8) for _, mask in materialised]
        return cls(tokens, np.concatenate(masks) if masks else np.zeros(0, np.int8), offsets)

    @classmethod
    def read_parquet(cls, path: str | Path) -> TokenExamples:
        """Read the columns ``token_ids`` and ``loss_mask`` (lists of integers)."""
        import pyarrow.parquet as parquet

        table = parquet.read_table(str(path))
        missing = {"token_ids", "loss_mask"} - set(table.column_names)
        if missing:
            raise UserError(
                f"{path} lacks the column(s) {', '.join(sorted(missing))}; it has "
                f"{', '.join(table.column_names)}"
            )
        ids, masks = (table.column(name).to_pylist() for name in ("token_ids", "loss_mask"))
        return cls.from_pairs(zip(ids, masks, strict=True))

    def write_parquet(self, path: str | Path) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        rows = [self.example(i) for i in range(len(self))]
        table = pyarrow.table(
            {"token_ids": [ids for ids, _ in rows], "loss_mask": [mask for _, mask in rows]}
        )
        parquet.write_table(table, str(path))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Offsets:
        return np.diff(self.offsets)

    def example(self, index: int) -> tuple[Ints, npt.NDArray[np.int8]]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.token_ids[span], self.loss_mask[span]


def _columns(rows: Iterable[Sequence[int]]) -> tuple[Ints, Offsets]:
    arrays = [np.asarray(row, dtype=np.int32) for row in rows]
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in arrays], out=offsets[1:])
    return (np.concatenate(arrays) if arrays else np.zeros(0, np.int32)), offsets
