"""From the values of a trajectory to its judge prompts, and which problems are held out.

Both decide row by row, so that a finished annotation and one that is still going on make the same
prompts of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepwiser.annotation.stopping import label_questions, trajectory_labels
from stepwiser.config.annotation import LabelConfig
from stepwiser.data.records import ChunkValue, JudgePrompt, Trajectory, content_id
from stepwiser.prompting.prompt_format import PromptFormat

TOO_LONG = "long"
DISPUTED = "disputed"
CONTRADICTED = "contradicted"
UNSPLIT = "all"
"""Splits of prompts before they are divided into training and held-out ones: too long, with a label
that not all rules give (`label.agree_with`) or that a critic contradicts (`label.critic`), and all
others."""


def label_trajectory(
    trajectory: Trajectory,
    values: Sequence[ChunkValue],
    config: LabelConfig,
    prompt_format: PromptFormat,
) -> list[JudgePrompt]:
    """Judge prompts of one trajectory, with one of the splits above.

    Args:
        trajectory: whose chunks are judged.
        values: of its leading chunks, in order.

    Raises ValueError where the values leave a label open.
    """
    if config.chunks_per_step > 1:
        separator = prompt_format.config.history_separator
        trajectory, values = merge_chunks(trajectory, values, config.chunks_per_step, separator)
    labels, *others = (
        trajectory_labels(question, trajectory, values) for question in label_questions(config)
    )
    means = [trajectory.problem_successes / trajectory.problem_trials, *(v.mean for v in values)]
    rows = []
    # No labels behind a prefix valued below `minimum_previous_value`: fewer labels than values.
    for i, (value, label) in enumerate(zip(values, labels, strict=False)):
        if label is None or any(other[i] is None for other in others):
            raise ValueError(f"chunk {i} of trajectory {trajectory.trajectory_id} has no label")
        disputed = any(other[i] != label for other in others)
        history = trajectory.chunks[:i]
        tokens = len(prompt_format.judge_ids(trajectory.question, history, trajectory.chunks[i]))
        rows.append(
            JudgePrompt(
                prompt_id=content_id(trajectory.trajectory_id, i),
                trajectory_id=trajectory.trajectory_id,
                problem_id=trajectory.problem_id,
                question=trajectory.question,
                history=history,
                chunk=trajectory.chunks[i],
                chunk_index=i,
                label=label,
                rule=config.rule,
                value=value.mean,
                previous_value=means[i],
                trials=value.trials,
                split=TOO_LONG
                if tokens > config.max_prompt_tokens
                else DISPUTED
                if disputed
                else UNSPLIT,
            )
        )
    return rows


def merge_chunks(
    trajectory: Trajectory, values: Sequence[ChunkValue], size: int, separator: str
) -> tuple[Trajectory, list[ChunkValue]]:
    """Every `size` chunks as one step, which is worth what the prefix is that ends with it.

    Where the values end within a step, the last chunk of the solution has its outcome, and any
    other step the value of its last valued chunk: that is what the unknown one is on average, since
    the policy that wrote the rest of the step is the one that rolled out.
    """
    chunks = trajectory.chunks
    starts = range(0, len(chunks), size)
    merged = []
    for index, start in enumerate(starts):
        last = min(start + size, len(chunks)) - 1
        if start >= len(values):
            break
        value = values[min(last, len(values) - 1)]
        if last >= len(values) and last == len(chunks) - 1:
            value = replace(
                value,
                successes=int(trajectory.correct),
                trials=1,
                is_outcome=True,
                planned=1,
                first_successes=int(trajectory.correct),
                first_trials=1,
                q_low=float(trajectory.correct),
                q_high=float(trajectory.correct),
            )
        merged.append(replace(value, chunk_index=index))
    steps = replace(
        trajectory,
        chunks=[separator.join(chunks[start : start + size]) for start in starts],
        chunk_ends=[trajectory.chunk_ends[min(s + size, len(chunks)) - 1] for s in starts],
    )
    return steps, merged


def is_held_out(problem_id: str, share: float, seed: int) -> bool:
    """Whether a problem is kept for validation: so is about this share of all, whatever else
    there is, and the same ones however often and in whatever order they are asked for."""
    return _is_among("heldout", problem_id, share, seed)


def is_repeated(problem_id: str, share: float, seed: int) -> bool:
    """Whether a problem's chunks are valued twice; chosen as `is_held_out` does."""
    return _is_among("repeated", problem_id, share, seed)


def _is_among(purpose: str, problem_id: str, share: float, seed: int) -> bool:
    return int(content_id(purpose, seed, problem_id)[:8], 16) < share * 2**32
