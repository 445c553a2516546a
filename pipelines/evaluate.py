"""Scores of the judges: before training, after, and the discriminative baseline."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from actors.pool import EnginePool
from pipelines import trusting
from pipelines.baselines import DISCRIMINATIVE, judge_start
from pipelines.judged import Bench
from pipelines.session import Session
from pipelines.train import JUDGE
from pipelines.trust_tables import print_trust
from stepwiser.errors import UserError
from stepwiser.evaluation import calibration, score_judge
from stepwiser.generation import Sample, Sampling
from stepwiser.judge import DiscriminativeJudge, GenerativeJudge, Judge
from stepwiser.policy import sample_solutions
from stepwiser.prompts import PromptFormat
from stepwiser.records import StepItem, content_id
from stepwiser.sources import load_step_items
from stepwiser.units import finished_units, read_unit


@dataclass(frozen=True)
class Contestant:
    """A judge to score: a model directory and how it is asked."""

    name: str
    model: str
    kind: str
    force: str = ""


def run(session: Session) -> dict[str, Any]:
    """Score every judge that exists; returns metrics by judge."""
    config = session.config.evaluate
    with session.stage("evaluate"):
        items = evaluation_items(session)
        values = _valued_items(session)
        metrics: dict[str, Any] = {
            "set": config.name,
            "items": {
                "wrong": sum(item.label != -1 for item in items),
                "right": sum(item.label == -1 for item in items),
            },
            "judges": {},
        }
        trust = trusting.prepare(session, items)
        metrics |= trust.facts(session)
        for contestant in contestants(session):
            bench = _bench(session, contestant)
            scored = _score(session, bench, items, values)
            metrics["judges"][contestant.name] = scored | trust.score(session, bench, scored)
    session.store.write_metrics("evaluate", metrics)
    print_scores(session, metrics)
    print_trust(session.console, metrics)
    return metrics


def contestants(session: Session) -> Iterator[Contestant]:
    """The start, the start made to reason, the trained judge, the discriminative baseline."""
    start = judge_start(session)
    yield Contestant("start", start, "generative")
    if session.config.evaluate.forced_prefix:
        yield Contestant(
            "start, forced", start, "generative", session.config.evaluate.forced_prefix
        )
    for name, kind in ((JUDGE, "generative"), (DISCRIMINATIVE, "discriminative")):
        path = session.store.model_dir(name)
        if (path / "config.json").is_file():
            yield Contestant(name, str(path), kind)


def make_judge(
    session: Session,
    contestant: Contestant,
    pool: EnginePool,
    *,
    votes: int,
    temperature: float,
) -> Judge:
    """A judge over engines that already hold its weights."""
    prompts = session.prompts(contestant.model)
    if contestant.kind == "discriminative":
        return DiscriminativeJudge(pool, prompts)
    return GenerativeJudge(
        pool,
        prompts,
        max_tokens=session.config.judge_max_tokens,
        votes=votes,
        temperature=temperature,
        force=contestant.force,
    )


def evaluation_items(session: Session) -> list[StepItem]:
    """The set to score on: a ProcessBench file, or fresh solutions with the oracle's labels."""
    config = session.config.evaluate
    if config.source != "embedded":
        return load_step_items(config.source, config.limit)
    path = session.store.root / "evaluation" / f"{config.name}.json"
    if path.is_file():
        return load_step_items(str(path), None)
    items = _embedded_items(session)
    session.store.write_json(f"evaluation/{config.name}.json", [asdict(item) for item in items])
    return items


def _embedded_items(session: Session) -> list[StepItem]:
    from stepwiser.tasks import first_error

    config = session.config.evaluate
    policy = session.policy_dir()
    pool = session.pool(policy)
    prompts = session.prompts(policy)
    found: dict[bool, list[StepItem]] = {False: [], True: []}
    wanted = {False: config.wrong, True: config.right}
    batch = config.wrong + config.right
    for attempt in range(20):
        data = session.config.evaluation_data.model_copy(
            update={"seed": session.config.evaluation_data.seed + 7 + attempt, "limit": batch}
        )
        problems = session.load(data, "evaluation")
        solutions = session.run(
            sample_solutions(
                pool,
                prompts.policy_ids,
                problems,
                Sampling(max_tokens=session.config.solve.max_tokens),
                session.checker,
            )
        )
        for solution in solutions:
            (sample,), (outcome,) = solution.samples, solution.outcomes
            steps = steps_of(prompts, sample)
            if steps is None or outcome is None:
                continue
            label = first_error(solution.problem.question, steps)
            found[label == -1].append(
                StepItem(
                    id=f"{session.config.evaluate.name}-{content_id(*sample.token_ids, attempt)}",
                    problem=solution.problem.question,
                    steps=steps,
                    label=label,
                    final_answer_correct=outcome,
                    generator="policy",
                )
            )
        if all(len(found[side]) >= wanted[side] for side in found):
            return found[False][: config.wrong] + found[True][: config.right]
    raise UserError(
        f"the policy gave only {len(found[False])} wrong and {len(found[True])} right solutions in "
        f"{20 * batch} tries; lower evaluate.wrong or evaluate.right"
    )


def steps_of(prompts: PromptFormat, sample: Sample) -> list[str] | None:
    """The steps of a response; None where it is not well formed."""
    try:
        return prompts.split(sample).texts
    except ValueError:
        return None


def _valued_items(session: Session) -> tuple[list[StepItem], dict[tuple[str, int], float]]:
    """Held-out annotated trajectories and an unbiased value of each of their chunks."""
    count = session.config.evaluate.calibration_trajectories
    units = sorted(finished_units(session.store))
    if not count or not units:
        return [], {}
    heldout = {
        row["problem_id"]
        for row in session.store.read_table("judge_prompts", "label").to_pylist()
        if row["split"] == "heldout"
    }
    items: list[StepItem] = []
    values: dict[tuple[str, int], float] = {}
    for unit in units:
        trajectories, by_trajectory = read_unit(session.store, unit)
        for trajectory in trajectories:
            if trajectory.problem_id not in heldout:
                continue
            rows = by_trajectory.get(trajectory.trajectory_id, [])
            items.append(
                StepItem(
                    id=trajectory.trajectory_id,
                    problem=trajectory.question,
                    steps=trajectory.chunks[: len(rows)],
                    label=-1,
                    final_answer_correct=trajectory.correct,
                    generator="annotated",
                )
            )
            # The share of all completions is biased where rollouts stopped early.
            values |= {(row.trajectory_id, row.chunk_index): row.unbiased_mean for row in rows}
    random.Random(session.config.seed).shuffle(items)
    return items[:count], values


def _bench(session: Session, contestant: Contestant) -> Bench:
    """The contestant's judgements: those of an earlier start, or of engines with its weights."""
    temperature = session.config.evaluate.temperature

    def judge(votes: int) -> Judge:
        pool = session.pool(contestant.model)
        return make_judge(session, contestant, pool, votes=votes, temperature=temperature)

    return Bench(
        session, contestant.name, contestant.model, f"{contestant.kind} {contestant.force}", judge
    )


def _score(
    session: Session,
    bench: Bench,
    items: list[StepItem],
    valued: tuple[list[StepItem], dict[tuple[str, int], float]],
) -> dict[str, Any]:
    config = session.config.evaluate
    rows = bench.items("judgements", bench.unit, items, config.votes)
    extra = bench.items("judgements", f"{bench.unit}-valued", valued[0], config.votes)
    result = score_judge(items, rows, config.bins)
    pairs = [(r.score, valued[1][r.item_id, r.step_index]) for r in extra if r.score is not None]
    result["calibration_values"] = calibration(
        [score for score, _ in pairs], [value for _, value in pairs], config.bins
    )
    return result


def print_scores(session: Session, metrics: dict[str, Any]) -> None:
    table = Table(
        title=f"ProcessBench format, {metrics['set']}: {metrics['items']['wrong']} wrong, "
        f"{metrics['items']['right']} right solutions",
        title_justify="left",
    )
    for column in (
        "judge",
        "F1 (official)",
        "wrong",
        "right",
        "F1 (final answer)",
        "Maj@k",
        "ECE",
        "no verdict",
    ):
        left = column == "judge"
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for name, row in metrics["judges"].items():
        official, final = row["single"]["official"], row["single"]["by_final_answer"]
        majority = row["majority"]["official"]
        error = official["f1_standard_error"]
        table.add_row(
            name,
            _number(official["f1"]) + (f" ± {error:.3f}" if error is not None else ""),
            _number(official["error_accuracy"]),
            _number(official["correct_accuracy"]),
            _number(final["f1"]),
            f"{_number(majority['f1'])} (k={row['votes']})" if row["votes"] > 1 else "-",
            _number(row["calibration"] and row["calibration"]["ece"]),
            f"{row['missing_share']:.1%}",
        )
    session.console.print(table)
    for reason in sorted(
        {
            reason
            for row in metrics["judges"].values()
            if (reason := row["single"]["official"].get("undefined_because"))
        }
    ):
        session.console.print(f"[yellow]no F1: the set has {reason}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
