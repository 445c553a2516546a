"""What GRPO rewards: single verdicts, bare verdicts, or the verdicts on a whole solution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stepwiser.data.records import JudgePrompt, Trajectory, content_id
from stepwiser.prompting.verdicts import is_bare_verdict, parse_verdict

OUTCOME = "outcome"
"""Stands for the label rule where the label is the outcome of the whole solution."""


def verdict_reward(verdict: bool | None, label: bool) -> float:
    """1 if the verdict equals the label, else 0; no verdict is 0."""
    return float(verdict is not None and verdict == label)


def verdict_only_reward(generated_text: str, label: bool) -> float:
    """Reward of the judge without analysis (paper: discriminative judge trained by RL).

    −1 when anything but one boxed verdict was generated, else as ``verdict_reward``. No verdict
    and no text at all is 0.
    """
    text = generated_text.strip()
    if text and not is_bare_verdict(text):
        return -1.0
    return verdict_reward(parse_verdict(text), label)


def solution_reward(verdicts: Sequence[bool | None], correct: bool) -> float:
    """Reward of one judgement of a whole solution, by its final answer alone.

    All Positive says that the answer is right, a Negative anywhere that it is wrong: 1 where that
    is so, else 0. A step without a verdict makes it 0, as for single verdicts.
    """
    return float(None not in verdicts and all(verdicts) is correct)


def outcome_prompts(trajectories: Iterable[Trajectory]) -> list[JudgePrompt]:
    """Every step of every solution as a prompt, labelled with whether the final answer is right.

    No value of a step is needed, so solutions count whose rollouts nobody made.
    """
    return [
        JudgePrompt(
            prompt_id=content_id(trajectory.trajectory_id, i),
            trajectory_id=trajectory.trajectory_id,
            problem_id=trajectory.problem_id,
            question=trajectory.question,
            history=trajectory.chunks[:i],
            chunk=chunk,
            chunk_index=i,
            label=trajectory.correct,
            rule=OUTCOME,
            value=float(trajectory.correct),
            previous_value=trajectory.problem_successes / trajectory.problem_trials,
            trials=1,
            split="train",
        )
        for trajectory in trajectories
        for i, chunk in enumerate(trajectory.chunks)
    ]


def _outcomes(prompts: Sequence[JudgePrompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Sample k of every step of a solution makes up its judgement k, which earns one reward."""
    steps: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        steps.setdefault(prompt.trajectory_id, []).append(position)
    rewards: list[list[float]] = [[] for _ in prompts]
    for positions in steps.values():
        correct = prompts[positions[0]].label
        judgements = zip(*(map(parse_verdict, texts[i]) for i in positions), strict=True)
        earned = [solution_reward(verdicts, correct) for verdicts in judgements]
        for i in positions:
            rewards[i] = earned
    return rewards


def _one_by_one(reward: Callable[[str, bool], float]) -> GroupReward:
    """Each answer for itself, by its text and its prompt's label."""

    def score(prompts: Sequence[JudgePrompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        pairs = zip(prompts, texts, strict=True)
        return [[reward(text, prompt.label) for text in row] for prompt, row in pairs]

    return score


GroupReward = Callable[[Sequence[JudgePrompt], Sequence[Sequence[str]]], list[list[float]]]
"""From prompts and the answers to each to the reward of every answer."""


@dataclass(frozen=True)
class RewardDefinition:
    """A reward, for the collector and for the readers of a model card."""

    score: GroupReward
    words: str


REWARDS: dict[str, RewardDefinition] = {
    "verdict": RewardDefinition(
        _one_by_one(lambda text, label: verdict_reward(parse_verdict(text), label)),
        "1 for a verdict that equals the step's label, else 0",
    ),
    "verdict_only": RewardDefinition(
        _one_by_one(verdict_only_reward),
        "1 for a verdict that equals the step's label, else 0; -1 for any other word",
    ),
    OUTCOME: RewardDefinition(
        _outcomes,
        "1 where the verdicts on all steps of a solution tell together whether its final answer "
        "is right, else 0; labels of steps are not used",
    ),
}
"""By the names of `train.reward`; a further one needs an entry here and its name there."""


def score_groups(
    reward: str, prompts: Sequence[JudgePrompt], texts: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Rewards of the sampled answers, by prompt and sample: as `train.reward` names them.

    Args:
        reward: a key of `REWARDS`.
        prompts: what was asked. For `outcome` with all steps of every solution, whose label is
            whether its final answer is right (`outcome_prompts`).
        texts: the answers to each prompt, equally many to all of one solution.
    """
    return REWARDS[reward].score(prompts, texts)
