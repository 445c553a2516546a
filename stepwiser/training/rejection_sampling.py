"""Rejection sampling: which of a judge's own judgements it is fine-tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from stepwiser.annotation.label_rules import balance
from stepwiser.data.records import JudgePrompt
from stepwiser.prompting.generation import Sample
from stepwiser.prompting.verdicts import parse_verdict


def choose_prompts(
    prompts: Sequence[JudgePrompt], count: int | None, rng: Random
) -> list[JudgePrompt]:
    """Prompts of a round: half of ``count`` of each class, as far as there are; all if None."""
    if count is None:
        return list(prompts)
    chosen = []
    for label, half in ((True, count // 2), (False, count - count // 2)):
        rows = [prompt for prompt in prompts if prompt.label is label]
        chosen += rng.sample(rows, min(half, len(rows)))
    return chosen


def select_right(
    prompts: Sequence[JudgePrompt], groups: Sequence[Sequence[Sample]], most: int, rng: Random
) -> list[tuple[JudgePrompt, Sample]]:
    """Judgements with the right verdict, at most ``most`` of a prompt, as many of either class.

    One that was cut at the token limit is left out: it would teach not to end. Empty where a class
    has none.
    """
    kept = []
    for prompt, samples in zip(prompts, groups, strict=True):
        right = [
            sample
            for sample in samples
            if not sample.truncated and parse_verdict(sample.text) is prompt.label
        ]
        kept += [(prompt, sample) for sample in rng.sample(right, min(most, len(right)))]
    labels = [prompt.label for prompt, _ in kept]
    return balance(kept, labels, rng) if len(set(labels)) == 2 else []


def round_figures(
    prompts: Sequence[JudgePrompt], groups: Sequence[Sequence[Sample]]
) -> dict[str, float]:
    """What was sampled in a round: shares of right verdicts, of none, and mean length in tokens.

    ``reward`` is the mean of both classes, as where GRPO reads as many prompts of either.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    silent: list[bool] = []
    lengths: list[int] = []
    for prompt, samples in zip(prompts, groups, strict=True):
        for sample in samples:
            verdict = parse_verdict(sample.text)
            hits[prompt.label].append(verdict is prompt.label)
            silent.append(verdict is None)
            lengths.append(len(sample.token_ids))
    shares = {label: sum(row) / len(row) for label, row in hits.items() if row}
    return {
        "reward": sum(shares.values()) / len(shares),
        **{
            f"accuracy_{name}": shares.get(label, float("nan"))
            for label, name in ((True, "positive"), (False, "negative"))
        },
        "share_no_verdict": sum(silent) / len(silent),
        "response_length": sum(lengths) / len(lengths),
    }
