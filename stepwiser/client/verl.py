"""A served judge in verl: a custom reward function, and a reward manager with a reward a step.

verl loads both by path, so nothing of it is imported here::

    reward.custom_reward_function.path=pkg://stepwiser.client.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.address=http://judge:8000

`StepRewardManager` gives its rewards where verl asks a manager for the rewards of a batch by token
(`assemble_rm_scores`); where it keeps one number a sample, that is the reduction of the steps.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from stepwiser.client.errors import JudgeError
from stepwiser.client.rewards import JudgeReward, RewardOptions, is_unjudgeable
from stepwiser.client.types import JudgeOptions
from stepwiser.errors import UserError

if TYPE_CHECKING:
    import torch

OF_VERL = {"reward_router_address", "reward_model_tokenizer"}
"""Arguments that verl adds for reward functions that ask its own reward models."""


@cache
def _reward(options: RewardOptions) -> JudgeReward:
    return JudgeReward(options)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    problem_key: str = "question",
    **settings: Any,
) -> float:
    """The reward of one solution, as a custom reward function of verl.

    Args:
        solution_str: what the policy wrote.
        extra_info: of the data set's row; its ``problem_key`` holds the problem.
        settings: fields of `RewardOptions`, by `reward_kwargs` of verl's config.

    Raises UserError where the row has no problem, or the solution cannot be judged and `unjudged`
    is not given: verl has no way to leave a sample out.
    """
    options = _options(settings)
    reward = await _reward(options)(_problem(extra_info, problem_key), solution_str)
    return _number(reward)


def _options(settings: Mapping[str, Any]) -> RewardOptions:
    fields = RewardOptions.__annotations__
    if unknown := sorted(settings.keys() - fields.keys() - OF_VERL):
        raise UserError(
            f"reward_kwargs.{unknown[0]}: no such setting; there are problem_key, "
            f"{', '.join(fields)}"
        )
    return RewardOptions(**{name: settings[name] for name in fields if name in settings})


class StepRewards(float):
    """The mean score of a solution's steps, and the reward of each at its last token."""

    by_token: list[tuple[int, float]]
    """Position in the response, from 0, and reward; of a solution that cannot be judged its one
    reward at the end."""

    def __new__(cls, by_token: Sequence[tuple[int, float]]) -> StepRewards:
        made = super().__new__(cls, math.fsum(reward for _, reward in by_token) / len(by_token))
        made.by_token = list(by_token)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return StepRewards, (self.by_token,)


class StepRewardManager:
    """A reward manager of verl (`reward.reward_manager.source=importlib`) with a reward a step.

    Its settings are those of `compute_score`, from `reward.custom_reward_function.reward_kwargs`;
    `reduction` has no meaning here.
    """

    def __init__(
        self, config: Any, tokenizer: Any, compute_score: Any = None, **others: Any
    ) -> None:
        """As verl makes its own; ``tokenizer`` is the policy's, the rest it may have is unused."""
        function = config.reward.get("custom_reward_function") or {}
        settings = dict(function.get("reward_kwargs") or {})
        self._tokenizer = tokenizer
        self._problem_key = settings.pop("problem_key", "question")
        self._options = _options(settings)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Rewards of the last sample of ``data``; raises as `compute_score`."""
        item = data[-1:][0]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        ids = responses[:length].tolist()
        problem = _problem(item.non_tensor_batch.get("extra_info"), self._problem_key)
        written = await asyncio.to_thread(self._decode, ids)
        asked: JudgeOptions = {}
        if self._options.votes is not None:
            asked["votes"] = self._options.votes
        by_token = await self._by_token(problem, written, ids, asked)
        if by_token is None:
            by_token = [(length - 1, _number(self._options.unjudged))]
        rewards = StepRewards(by_token)
        return {"reward_score": rewards, "reward_extra_info": {"judge_score": float(rewards)}}

    async def _by_token(
        self, problem: str, written: str, ids: Sequence[int], asked: JudgeOptions
    ) -> list[tuple[int, float]] | None:
        """Each step's end and score; None where the solution cannot be judged."""
        try:
            answer = await _reward(self._options).client.judge(problem, response=written, **asked)
        except JudgeError as error:
            if is_unjudgeable(error):
                return None
            raise
        scores = [step.score for step in answer.steps if step.score is not None]
        if len(scores) < len(answer.steps):
            return None
        texts = [step.text or "" for step in answer.steps]
        ends = await asyncio.to_thread(self._ends, ids, written, texts)
        return list(zip(ends, scores, strict=True))

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[StepRewards]) -> torch.Tensor:
        """``[batch, response]``, each step's reward at its last token and 0 elsewhere."""
        import torch

        found = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, rewards in enumerate(scores):
            for position, reward in rewards.by_token:
                found[row, position] += reward
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _ends(self, ids: Sequence[int], written: str, steps: Sequence[str]) -> list[int]:
        """Position of the last token of each step; the last one has what comes after it."""
        ends, at = [], 0
        for step in steps[:-1]:
            at = written.index(step, at) + len(step)
            counts = range(1, len(ids))
            ends.append(bisect_left(counts, at, key=lambda count: len(self._decode(ids[:count]))))
        return [*ends, len(ids) - 1]


def _problem(extra_info: Mapping[str, Any] | None, key: str) -> str:
    if not extra_info or key not in extra_info:
        raise UserError(
            f"problem_key={key}: extra_info has no such entry, it has {sorted(extra_info or ())}; "
            "put the problem there in the data set, or name the entry that holds it"
        )
    return str(extra_info[key])


def _number(reward: float | None) -> float:
    if reward is None:
        raise UserError(
            "unjudged: a solution cannot be judged and has no reward; give reward_kwargs.unjudged, "
            "the reward of such solutions"
        )
    return reward
