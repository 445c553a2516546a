"""What a trainer gets for solutions that are judged, cannot be judged, or that nobody answers."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stepwiser.client import JudgeError
from stepwiser.client.rewards import AsyncTRLReward, JudgeReward, RubricReward, TRLReward
from stepwiser.client.verl import StepRewardManager, StepRewards, compute_score
from stepwiser.errors import UserError
from tests.stepwiser.client.faulty_server import (
    MODEL,
    USAGE,
    FaultyServer,
    Request,
    faulty_server,
    judged,
    refusal,
)


def _score(request: Request) -> None:
    """By what the solution says of itself."""
    response = request.body["response"]
    if "mute" in response:
        request.answer(422, refusal("no_verdict", "no verdict on step 0"))
    elif not response:
        request.answer(422, refusal("invalid_request", "response: is empty", "response"))
    elif "down" in response:
        request.answer(500, refusal("internal"))
    elif request.body.get("votes") == 99:
        request.answer(422, refusal("invalid_request", "votes: at most 64", "votes"))
    else:
        score = 0.75 if "right" in response else 0.25
        body = {"score": score, "step_scores": [score], "first_negative": -1}
        request.answer(200, body | {"model": MODEL, "usage": USAGE})


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        server.rule = _score
        yield server


@pytest.mark.parametrize("kind", [TRLReward, AsyncTRLReward])
def test_trl_gets_none_for_what_cannot_be_judged(server: FaultyServer, kind: Any) -> None:
    metrics: dict[str, float] = {}

    def call(reward: Any, **columns: Any) -> Any:
        found = reward(log_metric=metrics.__setitem__, **columns)
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    texts = ["right", "mute", "wrong", ""]
    reward = kind(address=server.url, reduction="min")
    assert call(reward, prompts=["p"] * 4, completions=texts) == [0.75, None, 0.25, None]
    assert metrics == {"judge/unjudged": 0.5}
    assert {r.body["reduction"] for _, r in server.requests} == {"min"}
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    asked = [[{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]] * 4
    given = kind(address=server.url, unjudged=-1.0)
    assert call(given, prompts=asked, completions=chats) == [0.75, -1.0, 0.25, -1.0]
    assert server.requests[-1][1].body["problem"] == "p"
    assert given.__name__ == "stepwiser_judge"


def test_what_is_no_fault_of_a_solution_is_no_reward(server: FaultyServer) -> None:
    with pytest.raises(JudgeError, match="internal"):
        TRLReward(address=server.url, unjudged=0.0)(["p"] * 2, ["right", "down"])
    with pytest.raises(JudgeError, match="votes: at most 64"):
        TRLReward(address=server.url, unjudged=0.0, votes=99)(["p"], ["right"])
    with pytest.raises(UserError, match="no message of the role user, only of system"):
        TRLReward(address=server.url)([[{"role": "system", "content": "s"}]], ["right"])


async def test_functions_of_one_sample(server: FaultyServer) -> None:
    reward = pickle.loads(pickle.dumps(JudgeReward(address=server.url)))
    assert [await reward("p", text) for text in ("right", "mute")] == [0.75, None]
    rubric = RubricReward(address=server.url)
    completion = [{"role": "assistant", "content": "right"}]
    assert await rubric([{"role": "user", "content": "p"}], completion) == 0.75
    with pytest.raises(UserError, match="unjudged=NUMBER"):
        await rubric("p", "mute")
    row = {"data_source": "d", "ground_truth": "1", "extra_info": {"question": "p"}}
    settings = {"address": server.url, "reward_router_address": None}
    assert await compute_score(solution_str="wrong", **row, **settings) == 0.25
    assert await compute_score(solution_str="mute", **row, **settings, unjudged=0.5) == 0.5
    for more, words in (
        ({"problem_key": "problem"}, "problem_key=problem.*it has .*question"),
        ({"adress": "x"}, "reward_kwargs.adress: no such setting"),
        ({}, "reward_kwargs.unjudged"),
    ):
        with pytest.raises(UserError, match=words):
            await compute_score(solution_str="mute", **row, **settings, **more)


class _Tokens:
    """Tokens that are characters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


async def test_verl_gets_a_reward_at_the_end_of_each_step(server: FaultyServer) -> None:
    torch = pytest.importorskip("torch")
    written = "<chunk>ab</chunk><chunk>cd</chunk>e"
    answer = judged("Positive", "Negative")
    for step, text in zip(answer["steps"], ("ab", "cde"), strict=True):
        step["text"] = text
    server.rule = lambda request: request.answer(200, answer)
    ids = torch.tensor([*map(ord, written), 0, 0])
    mask = torch.tensor([1, 1, 1, *[1] * len(written), 0, 0])
    item = SimpleNamespace(
        batch={"responses": ids, "attention_mask": mask},
        non_tensor_batch={"extra_info": {"question": "p"}},
    )
    config = SimpleNamespace(
        reward={"custom_reward_function": {"reward_kwargs": {"address": server.url}}}
    )
    manager = StepRewardManager(config, _Tokens())
    found = await manager.run_single([item])
    rewards = pickle.loads(pickle.dumps(found["reward_score"]))
    assert isinstance(rewards, StepRewards) and rewards == 0.5
    data = SimpleNamespace(batch={"responses": torch.stack([ids])})
    (row,) = StepRewardManager.assemble_rm_scores(data, [rewards]).tolist()
    places = {at: reward for at, reward in enumerate(row) if reward}
    assert places == {written.index("b"): 0.75, len(written) - 1: 0.25}
