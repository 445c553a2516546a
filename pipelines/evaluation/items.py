"""The solutions that judges are scored on: of a file, fresh ones, or held-out annotated ones."""

from __future__ import annotations

import random
import re
from dataclasses import asdict

from pipelines.session.session import Session
from stepwiser.data.records import JudgePrompt, StepItem, content_id
from stepwiser.data.step_items import load_step_items, read_step_items, with_own_ids
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.units import finished_units, read_unit
from stepwiser.search.policy import sample_solutions


def evaluation_items(session: Session) -> list[StepItem]:
    """The set to score on: labelled steps of a file, or fresh solutions with an oracle's labels."""
    config = session.config.evaluate
    if config.source != "embedded":
        return file_items(session, config.name, config.source, config.limit)
    path = session.store.file(f"evaluation/{config.name}.json")
    if path.is_file():
        return load_step_items(str(path), None)
    # Two problems may have got the same words for a solution, which name it.
    items, _ = with_own_ids(_embedded_items(session))
    session.store.write_json(f"evaluation/{config.name}.json", [asdict(item) for item in items])
    return items


def file_items(session: Session, name: str, source: str, limit: int | None) -> list[StepItem]:
    """Items of a file; what is wrong with it is said, and listed in `rejects/`."""
    found = read_step_items(source, limit, session.config.evaluate.skip_bad_rows)
    if found.rejected:
        rows = [{"row": r.row, "reason": r.reason} for r in found.rejected]
        path = session.store.write_json(f"rejects/evaluation-{file_name(name)}.json", rows)
        session.console.print(f"[yellow]{len(rows)} unusable rows of {name} are listed in {path}")
    for words in found.notices:
        session.console.print(f"{name}: {words}", style="yellow", markup=False)
    return found.items


def file_name(name: str) -> str:
    """The name of a set as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name)


def _embedded_items(session: Session) -> list[StepItem]:
    from stepwiser.tasks import first_error

    config = session.config.evaluate
    policy = session.policy_dir()
    pool = session.pool(policy)
    prompts = session.prompts(policy)
    found: dict[bool, list[StepItem]] = {False: [], True: []}
    wanted = {False: config.wrong, True: config.right}
    batch = config.wrong + config.right
    for batch_number in range(20):
        data = session.config.evaluation_data.model_copy(
            update={"seed": session.config.evaluation_data.seed + 7 + batch_number, "limit": batch}
        )
        problems = session.load(data, "evaluation")
        solutions = session.run(
            sample_solutions(
                pool,
                prompts.policy_ids,
                problems,
                Sampling(max_tokens=session.config.solve.max_tokens),
                session.checker,
                heard=prompts.heard,
            )
        )
        for solution in solutions:
            (sample,), (outcome,) = solution.samples, solution.outcomes
            steps = steps_of(prompts, sample)
            if steps is None or outcome is None:
                continue
            label = first_error(solution.problem.question, steps)
            name = content_id(*sample.token_ids, batch_number)
            found[label == -1].append(
                StepItem(
                    id=f"{session.config.evaluate.name}-{name}",
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


def valued_items(session: Session) -> tuple[list[StepItem], dict[tuple[str, int], float]]:
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


def heldout_labels(session: Session) -> dict[tuple[str, int], bool]:
    """Labels of held-out chunks, by trajectory and chunk; none where steps are several chunks."""
    store = session.store
    if session.config.label.chunks_per_step > 1 or not store.units("judge_prompts"):
        return {}
    rows = JudgePrompt.from_table(store.read_table("judge_prompts", "label"))
    return {(r.trajectory_id, r.chunk_index): r.label for r in rows if r.split == "heldout"}
