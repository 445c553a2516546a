"""A made run directory with every stage, in the shapes that the stages write."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stepwiser.annotation.label_rules import LabelRule, balance, class_shares, label_chunks
from stepwiser.annotation.values import ValueEstimate
from stepwiser.config import RunConfig
from stepwiser.data.records import ChunkValue, Judgement, JudgePrompt, StepItem, Trajectory
from stepwiser.evaluation.benchmarks import Cost, benchmark_score
from stepwiser.evaluation.scoring import calibration, score_judge
from stepwiser.evaluation.step_scores import score_prmbench
from stepwiser.run.store import RunStore
from stepwiser.tasks import first_error, make_problem, solution
from tests.stepwiser.report.report_trust import made_trust

JUDGES = {"start": 0.62, "start, forced": 0.7, "judge": 0.9, "judge-discriminative": 0.76}
"""Made judges and how often their verdict on a step is right."""

HOSTILE = '</pre><script>alert("x")</script> <chunk> & \\boxed{3 < 4}'


def steps_of(rng: random.Random, wrong: bool) -> tuple[str, list[str]]:
    """A problem of the embedded task and a solution, with one result changed if `wrong`."""
    problem = make_problem(rng)
    steps = [line + "\n" for line in solution(problem).splitlines()]
    last = steps.pop().strip()
    if wrong:
        at = rng.randrange(len(steps))
        left, result = steps[at].rstrip().rsplit("=", 1)
        steps[at] = f"{left}={int(result) + rng.choice((1, 10))}\n"
    steps[-1] += last
    return problem.question, steps


def judgements(rng: random.Random, items: list[StepItem], judge: str) -> list[Judgement]:
    rows = []
    for item in items:
        for i in range(len(item.steps)):
            right = i != item.label
            votes = [
                -1
                if rng.random() < 0.01
                else int(right if rng.random() < JUDGES[judge] else not right)
                for _ in range(8)
            ]
            said = [v for v in votes if v != -1]
            verdict = 2 * sum(said) > len(said)
            rows.append(
                Judgement(
                    item_id=item.id,
                    judge=judge,
                    step_index=i,
                    votes=votes,
                    verdict=verdict,
                    score=sum(said) / len(said),
                    analysis=f"recompute {item.steps[i].strip()} so "
                    f"\\boxed{{{'Positive' if verdict else 'Negative'}}}",
                    tokens=8 * rng.randrange(20, 60),
                    truncated=0,
                )
            )
    return rows


def write_config(store: RunStore) -> RunConfig:
    config = RunConfig.model_validate(
        {"name": "embedded-cpu", "seed": 3, "evaluate": {"forced_prefix": "recompute "}}
    )
    store.open(config)
    return config


# fmt: off
def write_segment(store: RunStore) -> None:
    store.write_metrics("segment", {
        "responses": 1600, "right_responses": 912, "kept_responses": 380,
        "exact_segmentations": 376, "exact_share": 376 / 380, "chunks_per_response": 4.41,
        "before": {"accuracy": 0.571, "accuracy_se": 0.021, "tokens": 61.2, "steps": 5.3,
                   "well_formed": float("nan")},
        "after": {"accuracy": 0.583, "accuracy_se": 0.02, "tokens": 70.8, "steps": 4.4,
                  "well_formed": 0.994},
    })
# fmt: on


def write_annotation(store: RunStore, rng: random.Random) -> list[Trajectory]:
    trajectories, values = [], []
    for i in range(120):
        wrong = rng.random() < 0.5
        question, steps = steps_of(rng, wrong)
        label = first_error(question, steps)
        trajectory = Trajectory(
            trajectory_id=f"t{i:04d}",
            problem_id=f"p{i // 4:03d}",
            question=question,
            answer="7",
            response_ids=[1, 2, 3],
            chunks=steps,
            chunk_ends=list(range(1, len(steps) + 1)),
            final_answer="7",
            correct=label == -1,
            problem_successes=9,
            problem_trials=16,
        )
        trajectories.append(trajectory)
        for k in range(len(steps)):
            last = k == len(steps) - 1
            rate = 0.08 if label != -1 and k >= label else 0.45 + 0.5 * k / len(steps)
            successes = (
                (16 if label == -1 else 0) if last else sum(rng.random() < rate for _ in range(16))
            )
            values.append(
                ChunkValue(
                    trajectory_id=trajectory.trajectory_id,
                    problem_id=trajectory.problem_id,
                    chunk_index=k,
                    successes=successes,
                    trials=16,
                    truncated=0,
                    unverifiable=0,
                    generated_tokens=0 if last else 640,
                    is_outcome=last,
                    planned=16,
                    error_bound=0.0,
                    first_successes=successes,
                    first_trials=16,
                    q_low=ValueEstimate(successes, 16).interval()[0],
                    q_high=ValueEstimate(successes, 16).interval()[1],
                )
            )
    half = len(trajectories) // 2
    for unit, part in (("aa", trajectories[:half]), ("bb", trajectories[half:])):
        ids = {t.trajectory_id for t in part}
        store.write_table("trajectories", unit, Trajectory.to_table(part))
        store.write_table(
            "values", unit, ChunkValue.to_table([v for v in values if v.trajectory_id in ids])
        )
        store.write_json(f"units/{unit}.json", {"counts": {}, "rejects": [], "seconds": 1.0})
    store.write_table("values", "half-written", ChunkValue.to_table(values))  # no summary: not read
    # fmt: off
    store.write_metrics("annotate", {
        "units": 2, "rejects": [], "rollouts_per_prefix": 16,
        "counts": {
            "problems": 40, "responses": 640, "right_responses": 371, "response_tokens": 44800,
            "all_right": 6, "all_wrong": 4, "mixed_problems": 30, "trajectories": 120,
            "chunks": len(values), "prefixes": 400, "rollouts": 6400, "rollout_tokens": 256000,
            "malformed: cut at the token limit": 3, "malformed: text outside of <chunk>": 2,
        },
    })
    # fmt: on
    return trajectories


def write_labels(store: RunStore, trajectories: list[Trajectory], rng: random.Random) -> None:
    by_id: dict[str, list[float]] = {}
    for value in ChunkValue.from_table(store.read_table("values", "annotate")):
        means = by_id.setdefault(value.trajectory_id, [])
        if len(means) == value.chunk_index:
            means.append(value.mean)
    prompts = []
    rules = []
    for rule in LabelRule:
        positive = total = agree = 0
        for t in trajectories:
            labels = label_chunks(rule, by_id[t.trajectory_id], 9 / 16)
            wrong = first_error(t.question, t.chunks)
            positive += sum(labels)
            total += len(labels)
            agree += sum(y == (i != wrong) for i, y in enumerate(labels))
            if rule == LabelRule.REL_EFFECTIVE:
                prompts += [
                    JudgePrompt(
                        prompt_id=f"{t.trajectory_id}-{i}",
                        trajectory_id=t.trajectory_id,
                        problem_id=t.problem_id,
                        question=t.question,
                        history=t.chunks[:i],
                        chunk=t.chunks[i],
                        chunk_index=i,
                        label=y,
                        rule=rule,
                        value=by_id[t.trajectory_id][i],
                        previous_value=0.5,
                        trials=16,
                        split="heldout" if t.problem_id > "p024" else "train",
                    )
                    for i, y in enumerate(labels)
                ]
        rules.append(
            {
                "rule": str(rule),
                "positive_share": positive / total,
                "oracle_agreement": agree / total,
            }
        )
    store.write_table("judge_prompts", "part-0", JudgePrompt.to_table(prompts))
    metrics = {
        "rule": "rel_effective",
        "chunks": len(prompts),
        "too_long": 0,
        "problems": 30,
        "heldout_problems": 5,
        "rules": rules,
    }
    for split in ("train", "heldout"):
        part = [p for p in prompts if p.split == split]
        kept = balance(part, [p.label for p in part], rng)
        for when, rows in (("before", part), ("after", kept)):
            shares = class_shares([p.label for p in rows])
            metrics[f"{split}_{when}"] = {
                "positive": shares.positive,
                "negative": shares.negative,
                "positive_share": shares.positive_share,
            }
    store.write_metrics("label", metrics)


def write_training(store: RunStore, rng: random.Random, steps: int = 150) -> None:
    def noisy(value: float, spread: float) -> float:
        return min(1.0, max(0.0, value + rng.gauss(0, spread)))

    with store.curve.open("w") as file:
        for step in [0, 1, 2, 3, *range(steps)]:  # four steps were done again after a crash
            done = 1 - 0.97**step
            row = {
                "kind": "grpo",
                "name": "judge",
                "time": 1.0,
                "step": step,
                "loss": 0.01,
                "entropy": 0.42 - 0.2 * done + rng.gauss(0, 0.02),
                "clip_low": noisy(0.002, 0.001),
                "clip_high": noisy(0.004, 0.002),
                "logprob_gap": 2e-5 * (1 + rng.random()),
                "gradient_norm": 0.4 + rng.random() / 5,
                "publish_reward": noisy(0.6 + 0.28 * done, 0.03),
                "publish_accuracy_positive": noisy(0.72 + 0.2 * done, 0.04),
                "publish_accuracy_negative": noisy(0.45 + 0.4 * done, 0.05),
                "publish_share_no_verdict": noisy(0.05 * (1 - done), 0.005),
                "publish_mixed_groups": noisy(0.7 - 0.35 * done, 0.04),
                "publish_truncated": 0.0,
                "publish_response_length": 22 + 16 * done + rng.gauss(0, 0.8),
            }
            if step % 10 == 9:
                row |= {
                    "publish_heldout_positive": noisy(0.7 + 0.2 * done, 0.02),
                    "publish_heldout_negative": noisy(0.5 + 0.36 * done, 0.02),
                    "publish_heldout_balanced": noisy(0.6 + 0.28 * done, 0.02),
                }
            file.write(json.dumps(row) + "\n")
        file.write(json.dumps({"kind": "sft", "name": "policy", "step": 0, "loss": 1.0}) + "\n")
        file.write('{"kind": "grpo", "name": "judge", "st')  # a line that is being written
    store.write_metrics(
        "train",
        {
            "steps": steps,
            "prompts": {"train": 512, "heldout": 96},
            "reward_first": 0.61,
            "reward_last": 0.87,
            "accuracy_positive_last": 0.92,
            "accuracy_negative_last": 0.84,
            "response_length_first": 23.1,
            "response_length_last": 37.9,
            "logprob_gap": 2.9e-5,
            "trained_tokens": 1_843_220,
            "discriminative": {"steps": 40, "loss_last": 0.213, "trained_tokens": 91_000},
        },
    )


def write_evaluation(
    store: RunStore, trajectories: list[Trajectory], rng: random.Random, count: int = 60
) -> None:
    items = []
    for i in range(2 * count):
        question, steps = steps_of(rng, i < count)
        label = first_error(question, steps)
        items.append(
            StepItem(
                f"embedded-{i:03d}",
                question,
                steps,
                label,
                label == -1 or rng.random() < 0.15,
                "policy",
            )
        )
    items[0] = StepItem(
        "embedded-000", f"What {HOSTILE}?", [HOSTILE, *items[0].steps], 0, False, "x"
    )
    store.write_json("evaluation/embedded.json", [asdict(item) for item in items])
    heldout = [
        StepItem(
            t.trajectory_id,
            t.question,
            t.chunks,
            first_error(t.question, t.chunks),
            t.correct,
            "annotated",
        )
        for t in trajectories
        if t.problem_id > "p024"
    ]
    values = {
        (v.trajectory_id, v.chunk_index): v.mean
        for v in ChunkValue.from_table(store.read_table("values", "annotate"))
    }
    metrics = {}
    pairs_of_sets = []
    for judge in JUDGES:
        rows = judgements(rng, items, judge)
        extra = judgements(rng, heldout, judge)
        file = judge.replace(", ", "-")
        store.write_table("judgements", file, Judgement.to_table(rows))
        store.write_table("judgements", f"{file}-valued", Judgement.to_table(extra))
        metrics[judge] = score_judge(items, rows, 10)
        pairs = [(r.score, values[r.item_id, r.step_index]) for r in extra if r.score is not None]
        metrics[judge]["calibration_values"] = calibration(
            [s for s, _ in pairs], [v for _, v in pairs], 10
        )
        pairs_of_sets.append(
            asdict(benchmark_score(judge, "embedded", items, rows, Cost(9.5, 0, 700)))
        )
        labelled = [
            replace(i, wrong_steps=[i.label] if i.label >= 0 else [], category="circular")
            for i in items
        ]
        metrics[judge]["prmbench"] = {"prm": score_prmbench(labelled, rows)}
    metrics["judge"]["threshold"] = {"value": 0.4321, "f1": 0.5, "items": 77}
    facts = {"benchmarks": pairs_of_sets} | made_trust(
        items, metrics, {name: judgements(rng, items, name) for name in JUDGES}
    )
    store.write_metrics(
        "evaluate",
        {"set": "embedded", "items": {"wrong": count, "right": count}, "judges": metrics, **facts},
    )


# fmt: off
def write_uses(store: RunStore) -> None:
    def vote(k: int, accuracy: float) -> dict[str, float]:
        return {"votes": k, "accuracy": accuracy, "accuracy_se": 0.02, "total_tokens": 71.0 * k}

    curve = {1: 0.58, 2: 0.58, 3: 0.625, 4: 0.64, 5: 0.652, 6: 0.66, 8: 0.668, 12: 0.675, 16: 0.68}

    def row(
        method: str, judge: str, size: int, accuracy: float, rejected: float, judged: float, k: int
    ) -> dict[str, Any]:
        return {
            "method": method, "judge": judge, "size": size, "accuracy": accuracy,
            "accuracy_se": 0.019, "accepted_tokens": 72.3, "rejected_tokens": rejected,
            "policy_tokens": 72.3 + rejected, "judge_tokens": judged,
            "total_tokens": 72.3 + rejected + judged, "forced": 0.21, "votes": float(size),
            "seconds": 12.5 * size if size > 2 else None, "problems_at_once": 128, "engines": 2,
            "majority_at_cost": vote(k, curve[k]),
            "over_plain": {"mean": accuracy - 0.583, "se": 0.015},
            "over_majority": {"mean": accuracy - curve[k], "se": 0.016},
        }

    search = {
        name: row("chunk_reset", name, 1, accuracy, rejected, judged, k) | {"seconds": 9.1}
        for name, accuracy, rejected, judged, k in (
            ("start", 0.601, 20.1, 140.2, 3),
            ("judge", 0.752, 41.0, 260.4, 5),
            ("judge-discriminative", 0.66, 33.8, 6.1, 2),
        )
    }
    methods = [
        row(method, judge, size, 0.6 + 0.01 * size, 72.3 * (size - 1), 60.0 * size, 2 * size)
        for judge in search
        for method, sizes in (
            ("chunk_reset_majority", (2, 4)), ("chunk_reset_weighted", (2, 4)),
            ("best_of_n", (2, 4, 8)), ("weighted_vote", (2, 4, 8)), ("beam_search", (4,)),
            ("early_stop", (2, 4, 8)),
        )
        for size in sizes
    ]
    plain = {
        "accuracy": 0.583, "accuracy_se": 0.014, "tokens": 71.0, "samples": 16,
        "seconds": 3.2, "problems_at_once": 500, "engines": 1,
    }
    store.write_metrics("solve", {
        "problems": 500, "plain": plain, "search": search, "methods": methods,
        "majority": [
            vote(k, accuracy) | {"seconds": {1: 3.2, 7: 9.0, 8: 11.0}.get(k)}
            for k, accuracy in curve.items()
        ],
        "differences": {"judge - majority": {"mean": 0.1, "se": 0.016}},
    })
    store.write_metrics("select", {"problems": 320, "selected": 300, "picks": {
        "random": {"right_answer": 0.6, "every_step_right": 0.57},
        "judge": {"right_answer": 0.9, "every_step_right": 0.88},
        "random_right": {"right_answer": 1.0, "every_step_right": 0.95},
        "judge_right": {"right_answer": 1.0, "every_step_right": 0.99},
    }})
    accuracy = {"policy": 0.58, "random": 0.583, "judge": 0.627, "judge_right": 0.634,
                "random_right": 0.621}
    store.write_metrics("finetune", {
        "examples": 300,
        "accuracy": {k: {"mean": v, "se": 0.015, "tokens": 70.0} for k, v in accuracy.items()},
        "differences": {
            "judge - random": {"mean": 0.044, "se": 0.012},
            "judge_right - random_right": {"mean": 0.013, "se": 0.011},
        },
    })
# fmt: on


def write_costs(store: RunStore, *stages: str) -> None:
    for i, stage in enumerate(stages):
        store.write_json(
            f"metrics/cost-{stage}.json",
            {
                "stage": stage,
                "seconds": 40.0 * (i + 1),
                "generated_tokens": 100_000 * i,
                "prompt_tokens": 300_000 * i,
                "trained_tokens": 50_000 * (i % 2),
                "peak_memory_gb": 4.0 + i / 10,
                "cpus": 2.0,
                "gpus": 0.0,
                "gpu_hours": 0.0,
            },
        )


def full_run(root: Path) -> RunStore:
    store, rng = RunStore(root), random.Random(5)
    write_config(store)
    write_segment(store)
    trajectories = write_annotation(store, rng)
    write_labels(store, trajectories, rng)
    write_training(store, rng)
    write_evaluation(store, trajectories, rng)
    write_uses(store)
    write_costs(
        store, "segment", "annotate", "label", "train", "evaluate", "solve", "select", "finetune"
    )
    return store
