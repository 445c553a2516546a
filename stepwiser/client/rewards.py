"""A served judge as the reward of a trainer: TRL, verifiers, and any that calls a function.

A reward is the server's `/v1/score` of one solution. A solution that cannot be judged (it has no
steps, its tags do not pair up, it is too long, the judge names no verdict) gets `unjudged`, and
where that is None the trainer is told so: a missing verdict is no 0. A server that does not answer
ends the call with its JudgeError.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwiser.client.asynchronous import AsyncJudgeClient
from stepwiser.client.errors import JudgeError
from stepwiser.client.synchronous import JudgeClient
from stepwiser.client.types import Reduction, ScoreOptions, ScoreResponse, Solution
from stepwiser.errors import UserError

_OF_SOLUTION = re.compile(r"(problem|steps|response)\b")

Messages = Sequence[Mapping[str, Any]]
Text = str | Messages
"""What trainers call a prompt or a completion: a text, or the messages of a chat."""


@dataclass(frozen=True)
class RewardOptions:
    """Where the judge is and how its scores become one number."""

    address: str = "http://127.0.0.1:8000"
    key: str | None = None
    """Of the server; default: what STEPWISER_API_TOKEN says."""
    reduction: Reduction = "mean"
    """How the scores of the steps become one number."""
    votes: int | None = None
    """Judgments of each step; default: the server's."""
    unjudged: float | None = None
    """Reward of a solution that cannot be judged; None: it has none."""
    deadline_s: float = 600.0
    """Longest time for one solution, all tries together."""
    at_a_time: int = 64
    """Solutions that the server is asked about at once."""

    def client(self) -> dict[str, Any]:
        """Settings of a client; its batches are of one solution here."""
        return {
            "address": self.address,
            "key": self.key,
            "deadline_s": self.deadline_s,
            "batch_size": 1,
            "concurrency": self.at_a_time,
        }

    def score(self) -> ScoreOptions:
        """What is asked of a solution."""
        options: ScoreOptions = {"reduction": self.reduction}
        if self.votes is not None:
            options["votes"] = self.votes
        return options

    def reward(self, found: ScoreResponse | JudgeError) -> float | None:
        """Of one solution; raises the error that is not about the solution itself."""
        if isinstance(found, ScoreResponse):
            return found.score
        if is_unjudgeable(found):
            return self.unjudged
        raise found


def is_unjudgeable(error: JudgeError) -> bool:
    """Whether this solution is at fault, and not the server or how it was asked."""
    if error.type in ("no_verdict", "too_large"):
        return True
    return error.type == "invalid_request" and bool(_OF_SOLUTION.match(error.param or ""))


class JudgeReward:
    """Rewards as coroutines: `await reward(problem, response)`, in whichever event loop.

    What trainers that call a function a sample are made of, such as a `@vf.reward` of verifiers.
    """

    def __init__(self, options: RewardOptions | None = None, **fields: Any) -> None:
        """``options``, or the fields of `RewardOptions` by name."""
        self.options = options or RewardOptions(**fields)
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncJudgeClient] = (
            weakref.WeakKeyDictionary()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.options,)

    @property
    def client(self) -> AsyncJudgeClient:
        """Of the running loop, with whose end its connections go."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = AsyncJudgeClient(**self.options.client())
        return self._clients[loop]

    async def __call__(self, problem: Text, response: Text) -> float | None:
        """0 to 1; None where the solution cannot be judged and `unjudged` is None."""
        (reward,) = await self.many([problem], [response])
        return reward

    async def many(self, problems: Sequence[Text], responses: Sequence[Text]) -> list[float | None]:
        """One reward a response, in their order."""
        asked = [_solution(p, r) for p, r in zip(problems, responses, strict=True)]
        found = await self.client.score_many(asked, **self.options.score())
        return [self.options.reward(one) for one in found]


class TRLReward:
    """One of TRL's ``reward_funcs``. A completion that cannot be judged has the reward None, which
    TRL leaves out of its group; their share is the metric `judge/unjudged`."""

    def __init__(self, options: RewardOptions | None = None, **fields: Any) -> None:
        """``options``, or the fields of `RewardOptions` by name."""
        self.options = options or RewardOptions(**fields)
        self.__name__ = "stepwiser_judge"
        self._client = JudgeClient(**self.options.client())

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        asked = [_solution(p, c) for p, c in zip(prompts, completions, strict=True)]
        found = self._client.score_many(asked, **self.options.score())
        return _told([self.options.reward(one) for one in found], found, columns)


class AsyncTRLReward:
    """`TRLReward` as a coroutine, which TRL runs beside its other ones."""

    def __init__(self, options: RewardOptions | None = None, **fields: Any) -> None:
        """``options``, or the fields of `RewardOptions` by name."""
        self._reward = JudgeReward(options, **fields)
        self.__name__ = "stepwiser_judge"

    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        options = self._reward.options
        asked = [_solution(p, c) for p, c in zip(prompts, completions, strict=True)]
        found = await self._reward.client.score_many(asked, **options.score())
        return _told([options.reward(one) for one in found], found, columns)


def _told(
    rewards: list[float | None],
    found: Sequence[ScoreResponse | JudgeError],
    columns: Mapping[str, Any],
) -> list[float | None]:
    log = columns.get("log_metric")
    if log is not None and found:
        log("judge/unjudged", sum(isinstance(one, JudgeError) for one in found) / len(found))
    return rewards


class RubricReward:
    """A function of a verifiers `Rubric`: ``Rubric(funcs=[RubricReward(address=…)])``.

    A completion that cannot be judged raises where `unjudged` is None, and verifiers 0.1 makes 0 of
    whatever raises: give `unjudged` a number of your own choosing.
    """

    def __init__(self, options: RewardOptions | None = None, **fields: Any) -> None:
        """``options``, or the fields of `RewardOptions` by name."""
        self._reward = JudgeReward(options, **fields)
        self.__name__ = "stepwiser_judge"

    async def __call__(self, prompt: Text, completion: Text) -> float:
        reward = await self._reward(prompt, completion)
        if reward is None:
            raise UserError(
                "unjudged: a completion cannot be judged and has no reward; give RubricReward "
                "unjudged=NUMBER, the reward of such completions"
            )
        return reward


def _solution(prompt: Text, completion: Text) -> Solution:
    return Solution(_last(prompt, "user", "prompt"), response=_last(completion, "assistant"))


def _last(text: Text, role: str, name: str = "completion") -> str:
    """A text, or the last message of a role; raises UserError where there is none."""
    if isinstance(text, str):
        return text
    for message in reversed(text):
        if message["role"] == role:
            return str(message.get("content") or "")
    roles = ", ".join(str(message["role"]) for message in text)
    raise UserError(f"{name}: has no message of the role {role}, only of {roles or 'nobody'}")
