"""The generative judge by GRPO, and the discriminative baseline from the same labels."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from actors.collector import CollectorOptions, ExperienceCollector
from actors.learner import train_grpo
from actors.sft import SFTJob
from pipelines.label import load_prompts
from pipelines.learning import grpo_options, run_sft_jobs
from pipelines.session import Session
from pipelines.tracking import MetricsLogger
from stepwiser.experience import TokenExamples
from stepwiser.prompts import resolve_model
from stepwiser.records import JudgePrompt, group_by

JUDGE = "judge"
DISCRIMINATIVE = "judge-discriminative"


def run(session: Session) -> dict[str, Any]:
    """Trains both judges; an interrupted run goes on from its last checkpoint."""
    metrics = session.store.read_metrics("train") or {}
    missing = [
        name
        for name in (JUDGE, DISCRIMINATIVE)
        if not (session.store.model_dir(name) / "config.json").is_file()
        and (name == JUDGE or session.config.discriminative.enabled)
    ]
    if not missing and metrics:
        session.console.print("train: already done, kept")
        return metrics
    with session.stage("train", resumes=True) as usage:
        if JUDGE in missing:
            metrics |= _train_judge(session)
            usage.trained_tokens += metrics["trained_tokens"]
        if DISCRIMINATIVE in missing:
            metrics["discriminative"] = train_discriminative(session)
            usage.trained_tokens += metrics["discriminative"]["trained_tokens"]
    session.store.write_metrics("train", metrics)
    _print(session, metrics)
    return metrics


def judge_start(session: Session) -> str:
    """Where the judge begins: the chunk-tuned policy, unless the config names a model."""
    chosen = session.config.judge_model
    return resolve_model(chosen) if chosen else session.policy_dir()


def _train_judge(session: Session) -> dict[str, Any]:
    config = session.config
    start = judge_start(session)
    train = load_prompts(session.store, "train")
    heldout = load_prompts(session.store, "heldout")
    pool = session.pool(start)
    options = CollectorOptions(
        model_dir=start,
        prompts=config.prompts,
        train=config.train,
        max_response_tokens=min(config.train.max_response_tokens, config.judge_max_tokens),
        seed=config.seed,
    )
    collector = ExperienceCollector.remote(options, pool.client(), train, heldout)
    try:
        with (
            session.track("train judge", config.train.steps, "steps") as tracker,
            MetricsLogger(session, JUDGE) as logger,
        ):

            def on_metrics(row: dict[str, Any]) -> None:
                note = (
                    f"reward {row['reward']:.3f}  + {row['accuracy_positive']:.2f}"
                    f"  - {row['accuracy_negative']:.2f}  {row['response_length']:.0f} tokens"
                )
                tracker.update(row["step"] + 1, note=note)
                logger.log(row)

            result = train_grpo(grpo_options(session, JUDGE, start), collector, on_metrics)
    finally:
        collector.__ray_terminate__.remote()
    rows = result.metrics
    window = max(1, len(rows) // 10)
    return {
        "steps": result.steps,
        "prompts": {"train": len(train), "heldout": len(heldout)},
        "reward_first": _mean(rows[:window], "reward"),
        "reward_last": _mean(rows[-window:], "reward"),
        "accuracy_positive_last": _mean(rows[-window:], "accuracy_positive"),
        "accuracy_negative_last": _mean(rows[-window:], "accuracy_negative"),
        "no_verdict_last": _mean(rows[-window:], "share_no_verdict"),
        "response_length_first": _mean(rows[:window], "response_length"),
        "response_length_last": _mean(rows[-window:], "response_length"),
        "logprob_gap": _mean(rows, "logprob_gap"),
        "trained_tokens": sum(row["prompt_tokens"] + row["response_tokens"] for row in rows),
    }


def _mean(rows: Any, key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else float("nan")


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


def _print(session: Session, metrics: dict[str, Any]) -> None:
    table = Table(title="Training", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("steps", str(metrics["steps"]))
    for name, key in (
        ("reward, first tenth", "reward_first"),
        ("reward, last tenth", "reward_last"),
        ("verdict accuracy on positives, last tenth", "accuracy_positive_last"),
        ("verdict accuracy on negatives, last tenth", "accuracy_negative_last"),
    ):
        table.add_row(name, f"{metrics[key]:.3f}")
    if metrics.get("no_verdict_last"):
        table.add_row("answers without a verdict, last tenth", f"{metrics['no_verdict_last']:.1%}")
    table.add_row(
        "response length, first → last tenth",
        f"{metrics['response_length_first']:.1f} → {metrics['response_length_last']:.1f} tokens",
    )
    table.add_row("engine/learner log-prob gap", f"{metrics['logprob_gap']:.1e}")
    session.console.print(table)
