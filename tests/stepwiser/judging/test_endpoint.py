"""The critic behind an endpoint, over HTTP, against a server that refuses as servers do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.answers_file import AnswersFile
from stepwiser.config import PromptConfig
from stepwiser.errors import UserError
from stepwiser.judging.endpoint import EndpointClient, EndpointCritic
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.storage.folder import Folder
from tests.support.chat_server import ChatServer as Server
from tests.support.chat_server import Reply, chat_server, refused, said
from tests.support.tiny import make_tiny_model


@pytest.fixture
def server() -> Iterator[Server]:
    with chat_server() as made:
        yield made


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptFormat:
    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    config = PromptConfig(judge="{problem}|{history}|{chunk}", history_separator="/")
    return PromptFormat.from_model_dir(str(directory), config)


def critic(server: Server, prompts: PromptFormat, **changes: Any) -> EndpointCritic:
    client = {"patience_s": 5.0, "pauses_s": (0.01, 0.02, 0.04)}
    client |= {name: changes.pop(name) for name in set(client) & set(changes)}
    endpoint = EndpointClient("m", server.url, "CRITIC_KEY", 4, **client)  # type: ignore[arg-type]
    settings = {"votes": 1, "max_tokens": 64, "temperature": 0.5, "kept": {}}
    return EndpointCritic(endpoint, prompts, **(settings | changes))


def test_votes_are_counted_with_their_tokens(
    server: Server, prompts: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three votes are its self-consistency; the key is the environment's."""
    monkeypatch.setenv("CRITIC_KEY", "secret")
    texts = ["so \\boxed{Negative}", "fine \\boxed{Positive}", "no \\boxed{Negative}"]
    server.rule = lambda body, number: said(texts[number], "stop" if number else "length")
    found = asyncio.run(critic(server, prompts, votes=3).judge("p", ["a", "b"], "c"))
    assert found.verdict is False and found.score == pytest.approx(1 / 3)
    assert sorted(map(str, found.votes)) == ["False", "False", "True"]
    assert (found.tokens, found.prompt_tokens, found.failed, found.truncated) == (21, 120, 0, 1)
    assert found.analysis.endswith("\\boxed{Negative}")
    for _, key, body in server.asked:
        assert key == "Bearer secret"
        assert body["messages"] == [{"role": "user", "content": "p|a/b|c"}]
        assert (body["max_tokens"], body["temperature"], body["model"]) == (64, 0.5, "m")


def test_every_request_waits_as_long_as_the_server_says(
    server: Server, prompts: PromptFormat
) -> None:
    """Once as a number, once as a date; nobody knocks before."""
    quiet: list[float] = []

    def rule(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            quiet.append(time.monotonic() + 0.7)
            return refused(429, "slow down", retry_after="0.7")
        if number == 3:
            return refused(503, retry_after=formatdate(time.time() + 1.5, usegmt=True))
        return said("\\boxed{Positive}")

    server.rule = rule
    judge = critic(server, prompts)

    async def two() -> list[Any]:
        first = asyncio.create_task(judge.judge("p", [], "c"))
        while not judge.endpoint._open_at:
            await asyncio.sleep(0.005)
        return [await first, *await asyncio.gather(*(judge.judge("p", [], s) for s in "def"))]

    began = time.monotonic()
    assert all(found.verdict is True and not found.failed for found in asyncio.run(two()))
    assert all(at >= quiet[0] - 0.05 for at, _, _ in server.asked[1:])
    assert time.monotonic() - began > 0.7 and not judge.endpoint.failures


def test_a_request_that_fails_is_no_verdict_and_is_counted(
    server: Server, prompts: PromptFormat
) -> None:
    def rule(body: dict[str, Any], number: int) -> Reply:
        text = body["messages"][0]["content"]
        if text.endswith("long"):
            return refused(400, "the prompt does not fit")
        return refused(500, "broken") if text.endswith("bad") else said("\\boxed{Negative}")

    server.rule = rule
    judge = critic(server, prompts, votes=2)
    good, long, bad = asyncio.run(judge.judge_steps("p", ["good", "long", "bad"]))
    assert (good.verdict, good.failed, good.score) == (False, 0, 0.0)
    for found in (long, bad):
        assert (found.verdict, found.score, found.votes, found.failed) == (
            None,
            None,
            (None, None),
            2,
        )
        assert (found.analysis, found.tokens) == ("", 0)
    assert judge.endpoint.failures == {
        "HTTP 400: the prompt does not fit": 2, "HTTP 500: broken": 2
    }  # fmt: skip
    # 400 is asked once; 500 as often as there are pauses, and once more.
    texts = [body["messages"][0]["content"] for _, _, body in server.asked]
    assert [sum(t.endswith(end) for t in texts) for end in ("good", "long", "bad")] == [2, 2, 8]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refused(401, "wrong key"), "HTTP 401: wrong key"),
        (refused(404, "no such model"), "model m: HTTP 404: no such model"),
        (refused(429, "pay first", code="insufficient_quota"), "HTTP 429: pay first"),
        (refused(503, "not now", retry_after="3600"), "answers nobody: HTTP 503: not now"),
        (refused(500, "ever"), "answers nobody: HTTP 500: ever"),
    ],
)
def test_what_no_request_survives_ends_the_start(
    server: Server, prompts: PromptFormat, reply: Reply, words: str
) -> None:
    server.rule = lambda body, number: reply
    with pytest.raises(UserError, match=words):
        asyncio.run(critic(server, prompts).judge("p", [], "c"))
    assert len(server.asked) <= 4


def test_a_server_that_is_not_there_is_said(server: Server, prompts: PromptFormat) -> None:
    judge = critic(server, prompts)
    judge.endpoint.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1, model m answers nobody: Connect"):
        asyncio.run(judge.judge("p", [], "c"))


def test_a_model_that_calls_the_limit_otherwise_is_asked_so(
    server: Server, prompts: PromptFormat
) -> None:
    def rule(body: dict[str, Any], number: int) -> Reply:
        if "max_tokens" in body:
            return refused(400, "Unsupported parameter: use 'max_completion_tokens' instead")
        return said("\\boxed{Positive}")

    server.rule = rule
    judge = critic(server, prompts, temperature=1.0)
    found = asyncio.run(judge.judge_steps("p", ["a", "b"]))
    assert [v.verdict for v in found] == [True, True]
    assert server.asked[-1][2]["max_completion_tokens"] == 64
    assert "temperature" not in server.asked[-1][2]  # such models know one only


def test_answers_are_paid_for_once(server: Server, prompts: PromptFormat, tmp_path: Path) -> None:
    """Another start, in another event loop, after a line was cut off."""
    file = tmp_path / "answers" / "critic.jsonl"
    kept = lambda: AnswersFile(Folder(tmp_path), "answers/critic.jsonl")  # noqa: E731
    first = critic(server, prompts, kept=kept())
    before = asyncio.run(first.judge_steps("p", ["a", "b"]))
    asyncio.run(first.judge("p", ["a", "b"], "c"))
    assert len(server.asked) == 3
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    again = critic(server, prompts, kept=kept())
    assert asyncio.run(again.judge_steps("p", ["a", "b", "c"]))[:2] == before
    assert len(server.asked) == 4
    assert len(kept()) == 3
    asyncio.run(critic(server, prompts, kept=kept(), votes=2).judge("p", [], "a"))
    assert len(server.asked) == 5
