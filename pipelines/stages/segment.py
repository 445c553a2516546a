"""Chunks-of-thought: segment right responses of the base policy and teach it the format."""

from __future__ import annotations

import random
from typing import Any

from actors.learner.sft import SFTJob
from pipelines.monitoring.formatting import plus_minus, titled_table
from pipelines.session.session import Session
from pipelines.training.learner_options import response_example, run_sft_jobs, write_examples
from stepwiser.errors import UserError
from stepwiser.prompting.chunks import parse_chunks, split_paragraphs
from stepwiser.prompting.generation import Sampling
from stepwiser.prompting.segmentation import (
    PromptedSegmenter,
    RuleSegmenter,
    Segmenter,
    openai_segmenter,
    segment_all,
)
from stepwiser.prompting.thinking import answer_of
from stepwiser.search.policy import Solutions, accuracy, sample_solutions

EVALUATION_SAMPLES = 4


def run(session: Session) -> dict[str, Any]:
    """Returns the before/after table as metrics; writes models/policy.

    Where steps are paragraphs there is nothing to do, and the metrics are empty.
    """
    if session.config.prompts.steps == "paragraphs":
        session.console.print("segment: steps are paragraphs, which need no segmentation")
        return {}
    done = session.store.read_metrics("segment")
    if done and session.store.has_model("policy"):
        session.console.print("segment: already done, kept")
        return done
    with session.stage("segment", resumes=True) as usage:
        config = session.config.segment
        base = session.resolve(session.config.policy_model)
        prompts = session.prompts(base)
        kept, before = _responses(session)
        segmented = _segment(session, [text for _, text in kept])
        pairs = [(q, s) for (q, _), s in zip(kept, segmented, strict=True) if s is not None]
        _list_rejects(session, [r for r, s in zip(kept, segmented, strict=True) if s is None])
        if not pairs:
            raise UserError(
                f"none of {len(kept)} right responses was segmented exactly: use a stronger "
                "segment.segmenter_model or more segment.segmentations"
            )
        examples = []
        for question, text in pairs:
            response = prompts.response_ids(text)
            examples.append(response_example(prompts.policy_ids(question), response))
        path = write_examples(session, "segment", examples)
        output = session.store.model("policy")
        job = SFTJob.from_config("policy", base, output, path, config.sft, session.config.seed)
        (result,) = run_sft_jobs(session, [job])
        usage.trained_tokens += result.trained_tokens
        after = _evaluate(session, output, tuned=True)
        chunks = [len(parsed.texts) for _, s in pairs if (parsed := parse_chunks(s))]
        metrics = {
            "responses": before["responses"],
            "right_responses": before["right"],
            "kept_responses": len(kept),
            "exact_segmentations": len(pairs),
            "exact_share": len(pairs) / len(kept),
            "chunks_per_response": sum(chunks) / len(chunks),
            "before": _evaluate(session, base, tuned=False),
            "after": after,
        }
    session.store.write_metrics("segment", metrics)
    _print(session, metrics)
    return metrics


def _responses(session: Session) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Right responses of the base policy as (question, text), some of each problem."""
    config = session.config.segment
    problems = session.problems("train", config.problems)
    pool = session.pool(session.config.policy_model)
    prompts = session.prompts(session.config.policy_model)
    sampling = Sampling(max_tokens=config.max_tokens, n=config.responses)
    solutions = session.solutions(
        "base responses", pool, prompts.plain_ids, problems, sampling, prompts.heard
    )
    rng = random.Random(session.config.seed)
    kept = []
    for solution in solutions:
        right = [
            sample.text
            for sample, outcome in zip(solution.samples, solution.outcomes, strict=True)
            if outcome is True and not sample.truncated
        ]
        right = list(dict.fromkeys(right))
        rng.shuffle(right)
        kept += [(solution.problem.question, text) for text in right[: config.keep_per_problem]]
    counts = {
        "responses": sum(len(s.samples) for s in solutions),
        "right": sum(outcome is True for s in solutions for outcome in s.outcomes),
    }
    if not kept:
        raise UserError(
            f"none of {counts['responses']} responses of {session.config.policy_model} to "
            f"{len(problems)} problems is right: use a stronger model or easier problems"
        )
    return kept, counts


def _segment(session: Session, responses: list[str]) -> list[str | None]:
    config = session.config.segment
    prompts = session.prompts(session.config.policy_model)
    segmenter: Segmenter
    if config.segmenter == "rule":
        segmenter = RuleSegmenter()
    elif config.segmenter == "openai":
        segmenter = openai_segmenter(
            config.segmenter_url,
            config.segmenter_model,
            prompts,
            config.segmentations,
            config.max_tokens,
        )
    else:
        model = config.segmenter_model or session.config.policy_model
        segmenter = PromptedSegmenter(
            session.pool(model), session.prompts(model), config.segmentations, config.max_tokens
        )
    return session.run(segment_all(segmenter, responses))


def _list_rejects(session: Session, responses: list[tuple[str, str]]) -> None:
    """Write down the right responses that no exact segmentation was found for."""
    if not responses:
        return
    rows = [
        {"question": question, "response": text, "reason": "no exact segmentation"}
        for question, text in responses
    ]
    path = session.store.write_json("rejects/segment.json", rows)
    session.console.print(f"[yellow]{len(rows)} responses without chunks are listed in {path}")


def _evaluate(session: Session, model: str, *, tuned: bool) -> dict[str, float]:
    """Accuracy, tokens and steps of one policy on evaluation problems."""
    config = session.config.segment
    problems = session.problems("evaluation", config.evaluation_problems)
    prompts = session.prompts(model)
    solutions = session.run(
        sample_solutions(
            session.pool(model),
            prompts.policy_ids if tuned else prompts.plain_ids,
            problems,
            Sampling(max_tokens=config.max_tokens, n=EVALUATION_SAMPLES),
            session.checker,
            heard=prompts.heard,
        )
    )
    result = accuracy(solutions)
    return {
        "accuracy": result.mean,
        "accuracy_se": result.standard_error,
        "tokens": result.tokens,
        "steps": _mean_steps(solutions, tuned),
        "well_formed": _well_formed(solutions) if tuned else float("nan"),
    }


def _mean_steps(solutions: list[Solutions], tuned: bool) -> float:
    counts = []
    for solution in solutions:
        for sample in solution.samples:
            if tuned:
                parsed = parse_chunks(sample.text)
                counts += [len(parsed.texts)] if parsed else []
            else:
                counts.append(len(_plain_steps(answer_of(sample.text))))
    return sum(counts) / max(1, len(counts))


def _plain_steps(text: str) -> list[str]:
    """The usual split: at blank lines, or at line ends where a model writes none."""
    steps = split_paragraphs(text)
    return steps if len(steps) > 1 else [line for line in text.splitlines() if line.strip()]


def _well_formed(solutions: list[Solutions]) -> float:
    texts = [sample.text for s in solutions for sample in s.samples]
    return sum(parse_chunks(text) is not None for text in texts) / max(1, len(texts))


def _print(session: Session, metrics: dict[str, Any]) -> None:
    table = titled_table("Segmentation", "policy", "steps", "tokens", "pass@1", "well formed")
    for name, key in (("before (split at line ends)", "before"), ("after (chunks)", "after")):
        row = metrics[key]
        formed = "-" if key == "before" else f"{row['well_formed']:.1%}"
        table.add_row(
            name,
            f"{row['steps']:.2f}",
            f"{row['tokens']:.1f}",
            plus_minus(row["accuracy"], row["accuracy_se"]),
            formed,
        )
    session.console.print(table)
    session.console.print(
        f"{metrics['exact_segmentations']} of {metrics['kept_responses']} right responses "
        f"segmented exactly ({metrics['exact_share']:.1%})"
    )
