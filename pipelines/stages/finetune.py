"""SFT of the policy on each pick; what that does to its accuracy."""

from __future__ import annotations

from typing import Any

from actors.learner.sft import SFTJob
from pipelines.monitoring.formatting import plus_minus, titled_table
from pipelines.session.session import Session
from pipelines.stages.select import PICKS
from pipelines.training.learner_options import response_example, run_sft_jobs, write_examples
from stepwiser.annotation.statistics import known, mean_and_error
from stepwiser.data.records import Problem
from stepwiser.prompting.generation import Sampling
from stepwiser.search.policy import Solutions, accuracy


def run(session: Session) -> dict[str, Any]:
    """Accuracy after SFT on each pick, with paired differences over the same problems."""
    config = session.config.finetune
    with session.stage("finetune") as usage:
        policy = session.policy_dir()
        rows = session.store.read_table("selections", "select").to_pylist()
        jobs = [_job(session, policy, pick, rows) for pick in PICKS]
        results = run_sft_jobs(session, jobs)
        usage.trained_tokens += sum(result.trained_tokens for result in results)
        problems = session.problems("evaluation", config.evaluation_problems)
        solved = {
            name: _solve(session, model, problems)
            for name, model in (
                ("policy", policy),
                *((pick, session.store.model(f"policy-{pick}")) for pick in PICKS),
            )
        }
        metrics = {
            "examples": len(rows) // len(PICKS),
            "accuracy": {name: _summary(solutions) for name, solutions in solved.items()},
            "differences": {
                "judge - random": _difference(solved["judge"], solved["random"]),
                "judge_right - random_right": _difference(
                    solved["judge_right"], solved["random_right"]
                ),
            },
        }
    session.store.write_metrics("finetune", metrics)
    _print(session, metrics)
    return metrics


def _job(session: Session, policy: str, pick: str, rows: list[dict[str, Any]]) -> SFTJob:
    prompts = session.prompts(policy)
    examples = []
    for row in rows:
        if row["pick"] == pick:
            prompt = prompts.policy_ids(row["question"])
            response = row["response_ids"]
            examples.append(response_example(prompt, response))
    return SFTJob.from_config(
        f"policy-{pick}",
        policy,
        session.store.model(f"policy-{pick}"),
        write_examples(session, f"pick-{pick}", examples),
        session.config.finetune.sft,
        session.config.seed,
    )


def _solve(session: Session, model: str, problems: list[Problem]) -> list[Solutions]:
    config = session.config.finetune
    prompts = session.prompts(model)
    pool = session.pool(model)
    sampling = Sampling(
        max_tokens=session.config.solve.max_tokens,
        n=config.evaluation_samples,
        temperature=config.evaluation_temperature,
    )
    title = f"accuracy of {model.rsplit('/', 1)[-1]}"
    return session.solutions(title, pool, prompts.policy_ids, problems, sampling, prompts.heard)


def _summary(solutions: list[Solutions]) -> dict[str, float]:
    result = accuracy(solutions)
    return {"mean": result.mean, "se": result.standard_error, "tokens": result.tokens}


def _difference(a: list[Solutions], b: list[Solutions]) -> dict[str, float]:
    """Mean over problems of the difference, and its standard error: the problems are the same."""
    mean, error = mean_and_error(
        known([x.share_right - y.share_right for x, y in zip(a, b, strict=True)])
    )
    return {"mean": mean, "se": error}


def _print(session: Session, metrics: dict[str, Any]) -> None:
    title = f"Policy after SFT on {metrics['examples']} picked answers"
    table = titled_table(title, "picked by", "accuracy")
    for name, row in metrics["accuracy"].items():
        title = "(before)" if name == "policy" else name
        table.add_row(title, plus_minus(row["mean"], row["se"]))
    session.console.print(table)
    for name, row in metrics["differences"].items():
        session.console.print(f"{name}: {row['mean']:+.3f} ± {row['se']:.3f}")
