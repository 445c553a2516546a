"""Search with each judge beside plain sampling and majority vote at the same total tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.judge_specs import judge_specs, make_judge
from pipelines.evaluation.solving import METHODS, PlainSamples, Solver
from pipelines.monitoring.formatting import known, plus_minus, titled_table
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from stepwiser.search.comparison import (
    TITLES,
    Baseline,
    MethodRun,
    difference,
    in_words,
    mean_tokens,
    method_row,
    method_title,
    samples_for_budget,
)
from stepwiser.search.policy import ChunkSampler, SearchJudge, accuracy, solution_voices

VOTES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)
"""Of the majority votes whose accuracy is shown."""

SETTINGS = (
    "methods",
    "samples_per_chunk",
    "searches",
    "beams",
    "expansions",
    "negatives",
    "reduction",
    "plain_samples",
)
"""That the metrics say: they may differ from those that the run was started with."""


def run(session: Session) -> dict[str, Any]:
    """Accuracy, tokens and seconds of every way to solve the same fresh problems."""
    config = session.config.solve
    with session.stage("solve"):
        problems = session.problems("evaluation", config.problems)
        policy_dir = session.policy_dir()
        half = max(1, session.config.engine.count // 2)
        policy = ChunkSampler(
            session.pool(policy_dir, slot="policy", count=half),
            session.prompts(policy_dir),
            config.max_tokens,
            config.temperature,
        )
        plain = PlainSamples(session, policy, problems)
        # One of each problem first, whose seconds are those of plain sampling.
        plain.more(1)
        if config.plain_samples > 1:
            plain.more(config.plain_samples - 1)
        runs: list[MethodRun] = []
        for spec in [spec for spec in judge_specs(session) if not spec.force]:
            pool = session.pool(spec.model, slot="judge", count=half)
            judge = SearchJudge(
                make_judge(session, spec, pool, votes=1, temperature=config.judge_temperature)
            )
            solver = Solver(session, problems, spec.name, policy, judge, plain, engines=2 * half)
            for method in config.methods:
                runs += METHODS[method](solver)
        # Enough for a vote at the dearest method's cost, and for two where that is no great many.
        each = accuracy(plain.solutions).tokens
        dearest = max((samples_for_budget(mean_tokens(r.found), each) for r in runs), default=0)
        wanted = max(dearest, min(2 * dearest, VOTES[-1]))
        if (missing := wanted - config.plain_samples) > 0:
            plain.more(missing)
        metrics = metrics_of(session, runs, plain, half)
    session.store.write_metrics("solve", metrics)
    print_metrics(session, metrics)
    return metrics


def metrics_of(
    session: Session, runs: Sequence[MethodRun], plain: PlainSamples, engines: int
) -> dict[str, Any]:
    checker = session.checker
    baseline = Baseline(plain.solutions, checker, solution_voices(plain.solutions, checker))
    single = baseline.single
    config = session.config.solve.model_dump(mode="json")
    timed = {count for count, _ in plain.rounds}
    votes = [k for k in sorted({*VOTES, *timed}) if k <= baseline.samples]
    metrics: dict[str, Any] = {
        "problems": len(plain.problems),
        "settings": {name: config[name] for name in SETTINGS},
        "plain": {
            "accuracy": single.mean,
            "accuracy_se": single.standard_error,
            "tokens": single.tokens,
            "samples": baseline.samples,
            "not_checked": sum(solution.outcomes.count(None) for solution in plain.solutions),
            "seconds": plain.seconds(1),
            "problems_at_once": len(plain.problems),
            "engines": engines,
        },
        "majority": [
            baseline.vote_row(baseline.majority(k), k) | {"seconds": plain.seconds(k)}
            for k in votes
        ],
        "search": {},
        "methods": [],
        "differences": {},
    }
    solved: dict[str, list[float]] = {"plain": [s.share_right for s in plain.solutions]}
    for found in runs:
        shares = baseline.shares(found.found)
        row = method_row(found, baseline, shares)
        # Single chunk-reset searches have a place of their own, by judge.
        if found.method != "chunk_reset":
            metrics["methods"].append(row)
            continue
        metrics["search"][found.judge] = row
        solved[found.judge] = shares
        if found.judge == JUDGE:
            solved["majority"] = baseline.majority(row["majority_at_cost"]["votes"])
    for other in solved.keys() - {JUDGE}:
        if JUDGE in solved:
            gain = difference(solved[JUDGE], solved[other])
            metrics["differences"][f"{JUDGE} - {other}"] = gain
    return metrics


def print_metrics(session: Session, metrics: dict[str, Any]) -> None:
    """The table, and what its intervals say of each judge."""
    left = ("method", "judge")
    table = titled_table(
        f"Solving {metrics['problems']} fresh problems",
        *(
            *left,
            "accuracy",
            "tokens",
            "of the judge",
            "seconds",
            "vote, same tokens",
            "gain over it",
        ),
        left=left,
    )
    plain = metrics["plain"]
    table.add_row(
        *("plain sampling", ""),
        plus_minus(plain["accuracy"], plain["accuracy_se"]),
        *(f"{plain['tokens']:.0f}", "-", _seconds(plain["seconds"]), "-", "-"),
    )
    rows = [*metrics["search"].values(), *metrics["methods"]]
    # The judges of a method beside each other.
    rows.sort(key=lambda row: (list(TITLES).index(row["method"]), row["size"]))
    above = ""
    gains: dict[str, list[tuple[str, float, float]]] = {}
    for row in rows:
        title = method_title(row["method"], row["size"])
        vote, gain = row["majority_at_cost"], row["over_majority"]
        gains.setdefault(row["judge"], []).append((title, gain["mean"], gain["se"]))
        table.add_row(
            *("" if title == above else title, row["judge"]),
            plus_minus(row["accuracy"], row["accuracy_se"]),
            *(f"{row['total_tokens']:.0f}", f"{row['judge_tokens']:.0f}"),
            _seconds(row["seconds"]),
            f"{vote['accuracy']:.3f} of {vote['votes']}",
            f"{gain['mean']:+.3f} ± {gain['se']:.3f}",
        )
        above = title
    session.console.print(table)
    for judge, found in gains.items():
        for words in in_words(found):
            session.console.print(f"{judge}. {words}", highlight=False, markup=False)
    for name, row in sorted(metrics["differences"].items()):
        session.console.print(f"chunk-reset, {name}: {row['mean']:+.3f} ± {row['se']:.3f}")


def _seconds(value: float | None) -> str:
    return known(value, "{:.1f}")
