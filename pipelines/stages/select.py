"""Picking one answer a problem by the judge's mean chunk score, with and without an answer key."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa

from pipelines.evaluation.items import steps_of
from pipelines.evaluation.judge_specs import JudgeSpec, make_judge
from pipelines.monitoring.formatting import titled_table
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from stepwiser.errors import UserError
from stepwiser.judging.judges import Judge
from stepwiser.prompting.chunks import parse_chunks
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.search.policy import Solutions
from stepwiser.search.selection import Candidate, pick_candidates

PICKS = ("random", "judge", "random_right", "judge_right")


def run(session: Session) -> dict[str, Any]:
    """Writes selections/: one row a problem and pick, on problems that have a right answer."""
    config = session.config.select
    done = session.store.read_metrics("select")
    if done and session.store.units("selections"):
        session.console.print("select: already done, kept")
        return done
    with session.stage("select"):
        policy = session.policy_dir()
        judge_dir = session.store.find_model(JUDGE, "train")
        problems = session.selection_problems(config.problems)
        pool = session.pool(policy)
        prompts = session.prompts(policy)
        # Candidates are written as the annotated responses were.
        sampling = Sampling(
            max_tokens=session.config.annotate.max_tokens,
            n=config.responses,
            temperature=session.config.annotate.temperature,
        )
        solutions = session.solutions(
            "candidates", pool, prompts.policy_ids, problems, sampling, prompts.heard
        )
        usable = [s for s in solutions if any(outcome is True for outcome in s.outcomes)]
        if not usable:
            raise UserError(
                f"no right answer among {config.responses} responses to any of {len(problems)} "
                "problems: nothing to select from; use easier problems or more responses"
            )
        judge = make_judge(
            session,
            JudgeSpec(JUDGE, judge_dir, "generative"),
            session.pool(judge_dir),
            votes=config.votes,
            temperature=config.judge_temperature,
        )
        with session.progress("scoring candidates", len(usable), "problems") as bar:
            scored = session.run(_score_all(judge, prompts, usable, lambda: bar.update(advance=1)))
        rows, metrics = _pick(session, usable, scored)
        session.store.write_table("selections", "picks", rows)
    session.store.write_metrics("select", metrics)
    _print(session, metrics)
    return metrics


async def _score_all(
    judge: Judge, prompts: PromptFormat, solutions: list[Solutions], done: Any
) -> list[list[Candidate | None]]:
    """Candidates of every problem; None where a response is not in chunks."""

    async def one(solution: Solutions, sample: Sample, outcome: bool | None) -> Candidate | None:
        texts = steps_of(prompts, sample)
        if texts is None:
            return None
        verdicts = await asyncio.gather(
            *(
                judge.judge(solution.problem.question, texts[:i], text)
                for i, text in enumerate(texts)
            )
        )
        scores = tuple(v.score for v in verdicts if v.score is not None)
        return Candidate(outcome, scores)

    async def problem(solution: Solutions) -> list[Candidate | None]:
        pairs = zip(solution.samples, solution.outcomes, strict=True)
        result = await asyncio.gather(*(one(solution, s, o) for s, o in pairs))
        done()
        return list(result)

    return list(await asyncio.gather(*(problem(s) for s in solutions)))


def _pick(
    session: Session, solutions: list[Solutions], scored: list[list[Candidate | None]]
) -> tuple[pa.Table, dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    flawed = {pick: [0, 0] for pick in PICKS}
    for solution, candidates in zip(solutions, scored, strict=True):
        pairs = [
            (sample, candidate)
            for sample, candidate in zip(solution.samples, candidates, strict=True)
            if candidate is not None
        ]
        picks = pick_candidates(
            [candidate for _, candidate in pairs],
            seed=session.config.seed,
            problem_id=solution.problem.problem_id,
        )
        chosen = {pick: getattr(picks, pick) for pick in PICKS}
        if any(index is None for index in chosen.values()):
            continue  # all four are compared on the same problems
        for pick, index in chosen.items():
            sample, candidate = pairs[index]
            rows.append(
                {
                    "pick": pick,
                    "problem_id": solution.problem.problem_id,
                    "question": solution.problem.question,
                    "response_ids": list(sample.token_ids),
                    "response": sample.text,
                    "correct": candidate.correct is True,
                    "mean_score": candidate.mean_score,
                }
            )
            flawed[pick][0] += candidate.correct is True
            flawed[pick][1] += _fully_right(session, solution.problem.question, sample.text)
    count = max(1, len(rows) // len(PICKS))
    metrics = {
        "problems": len(solutions),
        "selected": len(rows) // len(PICKS),
        "picks": {
            pick: {
                "right_answer": right / count,
                "every_step_right": sound / count if _has_oracle(session) else None,
            }
            for pick, (right, sound) in flawed.items()
        },
    }
    if not rows:
        raise UserError(
            f"none of {len(solutions)} problems has a well-formed candidate with a verdict for "
            "every pick: raise select.problems, select.responses or select.votes"
        )
    return pa.Table.from_pylist(rows), metrics


def _has_oracle(session: Session) -> bool:
    return session.config.data.source == "embedded"


def _fully_right(session: Session, question: str, response: str) -> bool:
    if not _has_oracle(session):
        return False
    from stepwiser.tasks import first_error

    parsed = parse_chunks(response)
    return parsed is not None and first_error(question, list(parsed.steps)) == -1


def _print(session: Session, metrics: dict[str, Any]) -> None:
    columns = ["pick", "right answer", *(["every step right"] if _has_oracle(session) else [])]
    table = titled_table(f"Picks on {metrics['selected']} problems", *columns)
    for name, row in metrics["picks"].items():
        sound = [f"{row['every_step_right']:.1%}"] if _has_oracle(session) else []
        table.add_row(name, f"{row['right_answer']:.1%}", *sound)
    session.console.print(table)
