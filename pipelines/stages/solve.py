"""Chunk-reset beside plain sampling and majority vote at the same total tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actors.pool.pool import EnginePool
from pipelines.evaluation.judge_specs import JudgeSpec, judge_specs, make_judge
from pipelines.monitoring.formatting import plus_minus, titled_table
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from stepwiser.annotation.statistics import known, mean_and_error
from stepwiser.data.answers.boxes import boxed_answer
from stepwiser.data.records import Problem
from stepwiser.data.verifiers import AnswerChecker
from stepwiser.generation import Sampling
from stepwiser.prompting.thinking import answer_of
from stepwiser.search.chunk_reset import (
    SearchResult,
    chunk_reset,
    samples_for_budget,
)
from stepwiser.search.policy import (
    ChunkSampler,
    SearchJudge,
    Solutions,
    accuracy,
    majority_shares,
    share_true,
    solution_voices,
)


def run(session: Session) -> dict[str, Any]:
    """Accuracy and tokens of every way to solve the same fresh problems."""
    config = session.config.solve
    with session.stage("solve"):
        problems = session.problems("evaluation", config.problems)
        policy = session.policy_dir()
        judges = [c for c in judge_specs(session) if not c.force]
        half = max(1, session.config.engine.count // 2)
        results: dict[str, list[SearchResult]] = {}
        for spec in judges:
            results[spec.name] = _search(session, policy, spec, problems, half)
        plain = _plain(session, policy, problems, results, half)
        metrics = _metrics(session, problems, results, plain)
    session.store.write_metrics("solve", metrics)
    _print(session, metrics)
    return metrics


def _search(
    session: Session, policy: str, spec: JudgeSpec, problems: list[Problem], engines: int
) -> list[SearchResult]:
    config = session.config.solve
    policy_pool: EnginePool = session.pool(policy, slot="policy", count=engines)
    judge_pool: EnginePool = session.pool(spec.model, slot="judge", count=engines)
    sampler = ChunkSampler(
        policy_pool, session.prompts(policy), config.max_tokens, config.temperature
    )
    judge = SearchJudge(
        make_judge(session, spec, judge_pool, votes=1, temperature=config.judge_temperature)
    )
    gate = asyncio.Semaphore(config.concurrent_problems)
    with session.progress(f"chunk-reset, {spec.name}", len(problems), "problems") as bar:

        async def one(problem: Problem) -> SearchResult:
            async with gate:
                found = await chunk_reset(
                    problem, sampler, judge, config.samples_per_chunk, max_chunks=config.max_chunks
                )
            bar.update(advance=1)
            return found

        async def all_of_them() -> list[SearchResult]:
            return list(await asyncio.gather(*(one(problem) for problem in problems)))

        return session.run(all_of_them())


def _plain(
    session: Session,
    policy: str,
    problems: list[Problem],
    results: dict[str, list[SearchResult]],
    engines: int,
) -> list[Solutions]:
    """Enough plain samples for pass@1 and for a vote at the dearest search's cost."""
    pool = session.pool(policy, slot="policy", count=engines)
    prompts = session.prompts(policy)
    config = session.config.solve
    # Accepted tokens are what one plain sample costs, give or take; the vote may need more.
    budgets = [
        samples_for_budget(_mean(rs, "total_tokens"), max(1.0, _mean(rs, "accepted_tokens")))
        for rs in results.values()
    ]
    count = max([config.plain_samples, *(2 * budget for budget in budgets)])
    sampling = Sampling(max_tokens=config.max_tokens, n=count, temperature=config.temperature)
    return session.solutions(
        "plain sampling", pool, prompts.policy_ids, problems, sampling, prompts.heard
    )


def _mean(results: Sequence[SearchResult], field: str) -> float:
    return mean_and_error([float(getattr(r, field)) for r in results])[0]


def _metrics(
    session: Session,
    problems: list[Problem],
    results: dict[str, list[SearchResult]],
    plain: list[Solutions],
) -> dict[str, Any]:
    checker = session.checker
    single = accuracy(plain)
    named = solution_voices(plain, checker)
    metrics: dict[str, Any] = {
        "problems": len(problems),
        "plain": {
            "accuracy": single.mean,
            "accuracy_se": single.standard_error,
            "tokens": single.tokens,
            "samples": len(plain[0].samples),
            "not_checked": sum(solution.outcomes.count(None) for solution in plain),
        },
        "majority": [
            _vote_row(majority_shares(plain, k, checker, named), k, single.tokens)
            for k in _vote_counts(len(plain[0].samples))
        ],
        "search": {},
        "differences": {},
    }
    solved: dict[str, list[float]] = {"plain": [solution.share_right for solution in plain]}
    for name, found in results.items():
        solved[name] = [
            share_true([_right(checker, result.text, problem)])
            for result, problem in zip(found, problems, strict=True)
        ]
        mean, error = mean_and_error(known(solved[name]))
        total = _mean(found, "total_tokens")
        votes = min(samples_for_budget(total, single.tokens), len(plain[0].samples))
        elected = majority_shares(plain, votes, checker, named)
        metrics["search"][name] = {
            "accuracy": mean,
            "accuracy_se": error,
            "accepted_tokens": _mean(found, "accepted_tokens"),
            "rejected_tokens": _mean(found, "rejected_tokens"),
            "judge_tokens": _mean(found, "judge_tokens"),
            "total_tokens": total,
            "forced": _mean(found, "forced"),
            "majority_at_cost": _vote_row(elected, votes, single.tokens),
        }
        if name == JUDGE:
            solved["majority"] = elected
    for other in solved.keys() - {JUDGE}:
        if JUDGE in solved:
            difference = _difference(solved[JUDGE], solved[other])
            metrics["differences"][f"{JUDGE} - {other}"] = difference
    return metrics


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Mean gain on the same problems; its error leaves out how hard they are."""
    mean, error = mean_and_error(known([a - b for a, b in zip(ours, theirs, strict=True)]))
    return {"mean": mean, "se": error}


def _right(checker: AnswerChecker, text: str, problem: Problem) -> bool | None:
    return checker.check(boxed_answer(answer_of(text)), problem.answer, problem.question)


def _vote_counts(samples: int) -> list[int]:
    counts = [k for k in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64) if k <= samples]
    return counts


def _vote_row(shares: Sequence[float], votes: int, tokens: float) -> dict[str, float]:
    mean, error = mean_and_error(known(shares))
    return {
        "votes": votes,
        "accuracy": mean,
        "accuracy_se": error,
        "total_tokens": votes * tokens,
    }


def _print(session: Session, metrics: dict[str, Any]) -> None:
    table = titled_table(
        f"Solving {metrics['problems']} fresh problems",
        *("method", "accuracy", "accepted", "rejected", "judge", "total tokens"),
    )
    plain = metrics["plain"]
    table.add_row(
        "plain sampling",
        plus_minus(plain["accuracy"], plain["accuracy_se"]),
        f"{plain['tokens']:.0f}",
        "-",
        "-",
        f"{plain['tokens']:.0f}",
    )
    for name, row in metrics["search"].items():
        table.add_row(
            f"chunk-reset, {name}",
            plus_minus(row["accuracy"], row["accuracy_se"]),
            f"{row['accepted_tokens']:.0f}",
            f"{row['rejected_tokens']:.0f}",
            f"{row['judge_tokens']:.0f}",
            f"{row['total_tokens']:.0f}",
        )
        vote = row["majority_at_cost"]
        table.add_row(
            f"  majority of {vote['votes']}, same tokens",
            plus_minus(vote["accuracy"], vote["accuracy_se"]),
            f"{vote['total_tokens']:.0f}",
            "-",
            "-",
            f"{vote['total_tokens']:.0f}",
        )
    session.console.print(table)
    for name, row in sorted(metrics["differences"].items()):
        session.console.print(f"chunk-reset, {name}: {row['mean']:+.3f} ± {row['se']:.3f}")
