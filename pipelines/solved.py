"""Solutions of the policy to problems of the embedded task, as items with the oracle's label."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.session import Session
from stepwiser.generation import Sample, Sampling
from stepwiser.policy import sample_solutions
from stepwiser.prompts import PromptFormat
from stepwiser.records import Problem, StepItem, content_id


def solved_items(
    session: Session, problems: Sequence[Problem], name: str, attempt: int
) -> list[StepItem]:
    """One solution of each problem that is well formed; ids begin with `name`."""
    from stepwiser.tasks import first_error

    policy = session.policy_dir()
    prompts = session.prompts(policy)
    solutions = session.run(
        sample_solutions(
            session.pool(policy),
            prompts.policy_ids,
            problems,
            Sampling(max_tokens=session.config.solve.max_tokens),
            session.checker,
        )
    )
    items = []
    for solution in solutions:
        (sample,), (outcome,) = solution.samples, solution.outcomes
        steps = steps_of(prompts, sample)
        if steps is None or outcome is None:
            continue
        items.append(
            StepItem(
                id=f"{name}-{content_id(*sample.token_ids, attempt)}",
                problem=solution.problem.question,
                steps=steps,
                label=first_error(solution.problem.question, steps),
                final_answer_correct=outcome,
                generator="policy",
            )
        )
    return items


def steps_of(prompts: PromptFormat, sample: Sample) -> list[str] | None:
    """The steps of a response; None where it is not well formed."""
    try:
        return prompts.split(sample).texts
    except ValueError:
        return None
