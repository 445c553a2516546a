"""Judges that the RL judge is compared with, trained from the same labels."""

from __future__ import annotations

from typing import Any

from actors.sft import SFTJob
from pipelines.label import load_prompts
from pipelines.learning import run_sft_jobs
from pipelines.session import Session
from stepwiser.experience import TokenExamples
from stepwiser.prompts import resolve_model
from stepwiser.records import JudgePrompt, group_by

DISCRIMINATIVE = "judge-discriminative"


def judge_start(session: Session) -> str:
    """Where the judge begins: the chunk-tuned policy, unless the config names a model."""
    chosen = session.config.judge_model
    return resolve_model(chosen) if chosen else session.policy_dir()


def train_discriminative(session: Session) -> dict[str, Any]:
    """Multi-turn SFT on the very labels that RL reads (METHOD: discriminative + SFT)."""
    config = session.config
    start = judge_start(session)
    prompts = session.prompts(start)
    examples = []
    paths = []
    for split in ("train", "heldout"):
        rows = load_prompts(session.store, split)
        examples = discriminative_examples(rows, prompts)
        path = session.store.root / "sft" / f"discriminative-{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if examples:
            TokenExamples.from_pairs(examples).write_parquet(path)
            paths.append(str(path))
    job = SFTJob.from_config(
        DISCRIMINATIVE,
        start,
        str(session.store.model_dir(DISCRIMINATIVE)),
        paths[0],
        config.discriminative.sft,
        config.seed,
        evaluation=paths[1] if len(paths) > 1 else None,
    )
    (result,) = run_sft_jobs(session, [job])
    return {
        "steps": result.steps,
        "loss_last": result.loss,
        "trained_tokens": result.trained_tokens,
    }


def discriminative_examples(
    rows: list[JudgePrompt], prompts: Any
) -> list[tuple[list[int], list[bool]]]:
    """One multi-turn conversation a trajectory; only balanced chunks carry a loss.

    Chunks that balancing dropped stay in the context as the turns before the judged ones.
    """
    examples = []
    for group in group_by(rows, "trajectory_id").values():
        labels = {row.chunk_index: row.label for row in group}
        last = max(group, key=lambda row: row.chunk_index)
        chunks = [*last.history, last.chunk]
        # A chunk without a label of its own was passed by the rollouts: it stands as accepted.
        known = [labels.get(i, True) for i in range(len(chunks))]
        ids, mask = prompts.discriminative_example(last.question, chunks, known)
        turn = -1
        for position, verdict in enumerate(mask):
            if verdict:
                turn += 1
                mask[position] = turn in labels
        examples.append((ids, mask))
    return examples
