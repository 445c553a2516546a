"""Judges that the RL judge is compared with, trained from the same labels."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from actors.learner.sft import RESULT_FILE, SFTJob
from pipelines.session.session import Session
from pipelines.training.learner_options import response_example, run_sft_jobs, write_examples
from stepwiser.annotation.judge_prompts import is_held_out
from stepwiser.data.records import JudgePrompt, Trajectory, group_by
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.model_exports import has_model_file, read_model_file
from stepwiser.run.store import read_object
from stepwiser.run.tables import load_judge_prompts
from stepwiser.training.rejection_sampling import choose_prompts, round_figures, select_right
from stepwiser.training.rewards import outcome_prompts

JUDGE = "judge"
WARM = "judge-warm"
DISCRIMINATIVE = "judge-discriminative"


def judge_start(session: Session) -> str:
    """Where the judge begins: the chunk-tuned policy, unless the config names a model."""
    chosen = session.config.judge_model
    return session.resolve(chosen) if chosen else session.policy_dir()


def train_discriminative(session: Session) -> dict[str, Any]:
    """Multi-turn SFT on the very labels that RL reads (METHOD: discriminative + SFT)."""
    config = session.config
    start = judge_start(session)
    prompts = session.prompts(start)
    examples = []
    paths = []
    for split in ("train", "heldout"):
        rows = load_judge_prompts(session.store, split)
        examples = discriminative_examples(rows, prompts)
        if examples:
            paths.append(write_examples(session, f"discriminative-{split}", examples))
    job = SFTJob.from_config(
        DISCRIMINATIVE,
        start,
        session.store.model(DISCRIMINATIVE),
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


def solutions_prompts(session: Session) -> list[JudgePrompt]:
    """Every step of the annotated solutions, for judges that are trained on outcomes alone.

    Empty for any other reward. Solutions of held-out problems are left out, and those with a step
    whose prompt is over the length limit.
    """
    config = session.config
    if config.train.reward != "outcome":
        return []
    prompts = session.prompts(judge_start(session))
    table = session.store.read_table("trajectories", "annotate")
    share, seed = config.label.heldout_share, config.seed
    rows = [
        row for row in Trajectory.from_table(table) if not is_held_out(row.problem_id, share, seed)
    ]
    found = outcome_prompts(sorted(rows, key=lambda row: row.trajectory_id))
    long = {
        prompt.trajectory_id
        for prompt in found
        if len(_ask(prompts, prompt)) > config.label.max_prompt_tokens
    }
    return [prompt for prompt in found if prompt.trajectory_id not in long]


def train_rejection(session: Session) -> dict[str, Any]:
    """Rejection-sampling fine-tuning: each round samples the judge of the round before on labelled
    prompts and fine-tunes it on what was right (METHOD: RS-FT). Finished rounds are kept.
    """
    rounds = _rejection_rounds(session, JUDGE)
    first, latest = rounds[0], rounds[-1]
    return {
        "steps": sum(row["steps"] for row in rounds),
        "reward_first": first["reward"],
        "reward_last": latest["reward"],
        "accuracy_positive_last": latest["accuracy_positive"],
        "accuracy_negative_last": latest["accuracy_negative"],
        "no_verdict_first": first["share_no_verdict"],
        "no_verdict_last": latest["share_no_verdict"],
        "response_length_first": first["response_length"],
        "response_length_last": latest["response_length"],
        "trained_tokens": sum(row["trained_tokens"] for row in rounds),
        "rounds": rounds,
    }


def warm_start(session: Session) -> tuple[str, list[dict[str, Any]]]:
    """The judge that GRPO begins with where `train.warm_start` says so, fine-tuned as by
    `train_rejection`; its model, and the figures of each round."""
    return session.store.model(WARM), _rejection_rounds(session, WARM)


def _rejection_rounds(session: Session, final: str) -> list[dict[str, Any]]:
    """What each round sampled and trained; the model of the last one is called ``final``."""
    config = session.config
    rounds = []
    model = judge_start(session)
    for number in range(config.rejection.rounds):
        last = number + 1 == config.rejection.rounds
        name = final if last else f"{final}-round-{number + 1}"
        output = session.store.model(name)
        figures = f"sft/rejection-{number + 1}.json"
        if not has_model_file(output, RESULT_FILE):
            examples, sampled = _right_judgements(session, model, number)
            session.store.write_json(figures, sampled)
            job = SFTJob.from_config(
                name, model, output, examples, config.rejection.sft, config.seed + number
            )
            run_sft_jobs(session, [job])
        result = json.loads(read_model_file(output, RESULT_FILE))
        rounds.append(read_object(session.store.file(figures)) | result)
        model = output
    return rounds


def _right_judgements(session: Session, model: str, number: int) -> tuple[str, dict[str, float]]:
    """File with the examples of a round, and what was sampled for it."""
    config, settings = session.config, session.config.rejection
    rng = random.Random(f"{config.seed}/rejection/{number}")
    rows = choose_prompts(load_judge_prompts(session.store, "train"), settings.prompts, rng)
    pool, prompts = session.pool(model), session.prompts(model)
    sampling = Sampling(
        max_tokens=min(config.train.max_response_tokens, config.judge_max_tokens),
        n=settings.samples,
        temperature=config.train.temperature,
    )
    with session.progress(f"sample, round {number + 1}", len(rows), "prompts") as bar:

        async def judge(row: JudgePrompt) -> list[Sample]:
            samples = prompts.heard(
                await pool.generate(_ask(prompts, row), sampling, affinity=row.question)
            )
            bar.update(advance=1)
            return samples

        async def judge_all() -> list[list[Sample]]:
            return list(await asyncio.gather(*(judge(row) for row in rows)))

        groups = session.run(judge_all())
    kept = select_right(rows, groups, settings.keep_per_prompt, rng)
    if not kept:
        raise UserError(
            f"round {number + 1} of rejection sampling: one class has no right verdict among "
            f"{settings.samples} samples of {len(rows)} prompts; raise rejection.samples, or start "
            "from a judge that knows both verdicts"
        )
    examples = []
    for row, sample in kept:
        ids = _ask(prompts, row)
        answer = list(sample.token_ids)
        examples.append(response_example(ids, answer))
    path = write_examples(session, f"rejection-{number + 1}", examples)
    return path, round_figures(rows, groups) | {"kept": float(len(kept))}


def _ask(prompts: PromptFormat, row: JudgePrompt) -> list[int]:
    return prompts.judge_ids(row.question, row.history, row.chunk)
