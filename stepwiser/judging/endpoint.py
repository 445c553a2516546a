"""A critic behind any OpenAI-compatible endpoint, asked by the run's own judge prompt.

A request that fails for a passing reason (too many at once, an overloaded or unreachable server) is
sent again, after the time that the server names (`Retry-After`), or after longer and longer pauses;
all requests wait meanwhile. One that fails for good is a vote without a verdict, counted as failed.
What no request can survive (a wrong key, an unknown model, no credit, a server that answers
nobody) ends the start with a UserError: answers are kept.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from stepwiser.data.records import content_id
from stepwiser.errors import UserError
from stepwiser.judging.judges import Judge, JudgeVerdict
from stepwiser.judging.votes import majority, verdict_score
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import is_unfinished
from stepwiser.prompting.verdicts import parse_verdict

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PATIENCE_S = 600.0
"""A request that was sent again for so long has failed, and so has a server that was silent."""
REQUEST_S = 300.0
"""Longest wait for one answer."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Before a request is sent again, where the server names no time: about so long."""


@dataclass(frozen=True)
class EndpointAnswer:
    """What came of one vote."""

    text: str
    generated_tokens: int
    prompt_tokens: int
    truncated: bool


@dataclass
class EndpointClient:
    """One endpoint, and what all requests to it share: places, pauses, and why some failed."""

    model: str
    url: str
    key_variable: str
    """Of the environment, the one place that a key is read from."""
    concurrency: int
    patience_s: float = PATIENCE_S
    pauses_s: Sequence[float] = PAUSES_S
    failures: dict[str, int] = field(default_factory=dict)
    """Reasons of failed requests, and how many there were of each."""
    _open_at: float = 0.0
    """No request is sent before, on the monotonic clock."""
    _answered_at: float | None = None
    """When the server last answered anybody."""
    _limit: str = "max_tokens"
    """What the server calls the longest answer."""
    _loop: asyncio.AbstractEventLoop | None = None
    _places: asyncio.Semaphore = field(init=False)
    _client: AsyncOpenAI = field(init=False)

    async def ask(self, message: str, max_tokens: int, temperature: float) -> EndpointAnswer | None:
        """One answer; None where the request failed for good.

        Raises UserError for what no other request would survive.
        """
        self._connect()
        async with self._places:
            began = time.monotonic()
            for number in range(len(self.pauses_s) + 1):
                await asyncio.sleep(max(0.0, self._open_at - time.monotonic()))
                found = await self._once(message, max_tokens, temperature)
                if not isinstance(found, _Passing):
                    return found
                last = number == len(self.pauses_s)
                pause = 0.0 if last else self.pauses_s[number] * random.uniform(0.75, 1.25)
                if found.wait_s is not None:
                    pause = found.wait_s
                self._open_at = max(self._open_at, time.monotonic() + pause)
                if last or time.monotonic() + pause > began + self.patience_s:
                    self._given_up(found.reason)
                    return None
        raise AssertionError("unreachable")

    def _connect(self) -> None:
        """Connections belong to an event loop, and every part of an evaluation has its own."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        self._loop, self._places = loop, asyncio.Semaphore(self.concurrency)
        self._client = AsyncOpenAI(
            base_url=self.url,
            # Local servers ask for no key, but the client insists on one.
            api_key=os.environ.get(self.key_variable) or "none",
            # Its own retries would not know of each other's pauses.
            max_retries=0,
            timeout=REQUEST_S,
        )

    async def _once(
        self, message: str, max_tokens: int, temperature: float
    ) -> EndpointAnswer | _Passing | None:
        import openai

        limit = self._limit
        try:
            answer = await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": message}],
                # What is the default is not said: some models know no other.
                temperature=openai.omit if temperature == 1.0 else temperature,
                extra_body={limit: max_tokens},
            )
        except openai.APIStatusError as error:
            return self._refused(error, limit)
        except openai.APIConnectionError as error:  # a timeout is one, too
            cause = error.__cause__ or error
            return _Passing(f"{type(cause).__name__}: {cause}", None)
        self._answered_at = time.monotonic()
        usage = answer.usage
        choice = answer.choices[0] if answer.choices else None
        if choice is None:
            self._failed("an answer without choices")
            return None
        return EndpointAnswer(
            text=choice.message.content or "",
            generated_tokens=usage.completion_tokens if usage else 0,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            truncated=choice.finish_reason == "length",
        )

    def _refused(self, error: Any, limit: str) -> _Passing | None:
        status, reason = error.status_code, _reason(error)
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            raise UserError(f"endpoint {self.url}, model {self.model}: {reason}")
        if status in (408, 409, 429) or status >= 500:
            return _Passing(reason, _retry_after(error.response.headers))
        if limit == "max_tokens" and "max_completion_tokens" in reason:
            self._limit = "max_completion_tokens"
            return _Passing(reason, 0.0)
        self._answered_at = time.monotonic()
        self._failed(reason)
        return None

    def _given_up(self, reason: str) -> None:
        """Raises UserError where the others have no better luck."""
        if self._answered_at is None or time.monotonic() - self._answered_at > self.patience_s:
            raise UserError(
                f"endpoint {self.url}, model {self.model} answers nobody: {reason}; start the same "
                "command again when it does, answers are kept"
            )
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1


@dataclass(frozen=True)
class _Passing:
    """A failure that may be over the next time."""

    reason: str
    wait_s: float | None
    """What the server asks for."""


@dataclass(frozen=True)
class EndpointCritic(Judge):
    """Asks an endpoint for each vote; several votes are its self-consistency."""

    endpoint: EndpointClient
    prompts: PromptFormat
    votes: int
    max_tokens: int
    temperature: float
    kept: MutableMapping[str, dict[str, Any]]
    """Answers by question and number of the vote: what is there was paid for, and is not asked
    again."""

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        message = self.prompts.judge_message(problem, history, chunk)
        answers = await asyncio.gather(*(self._vote(message, i) for i in range(self.votes)))
        heard = [answer for answer in answers if answer is not None]
        votes = tuple(None if a is None else parse_verdict(a.text) for a in answers)
        verdict = majority(votes)
        agreeing = (
            a.text
            for a, vote in zip(answers, votes, strict=True)
            if a is not None and vote is verdict
        )
        return JudgeVerdict(
            verdict=verdict,
            score=verdict_score(votes),
            analysis=next(agreeing, heard[0].text if heard else ""),
            votes=votes,
            tokens=sum(a.generated_tokens for a in heard),
            truncated=sum(a.truncated for a in heard),
            unfinished=sum(is_unfinished(a.text) for a in heard),
            prompt_tokens=sum(a.prompt_tokens for a in heard),
            failed=len(answers) - len(heard),
        )

    async def _vote(self, message: str, number: int) -> EndpointAnswer | None:
        url, model = self.endpoint.url, self.endpoint.model
        key = content_id(url, model, self.max_tokens, self.temperature, number, message)
        if key in self.kept:
            return EndpointAnswer(**self.kept[key])
        answer = await self.endpoint.ask(message, self.max_tokens, self.temperature)
        if answer is not None:
            self.kept[key] = asdict(answer)
        return answer


def _reason(error: Any) -> str:
    """What the server says, in one line."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    words = " ".join(str(said or error.message).split())
    return f"HTTP {error.status_code}: {words[:300]}"


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: a number of them, or a date. None where it says none."""
    if milliseconds := headers.get("retry-after-ms"):
        try:
            return max(0.0, float(milliseconds) / 1000)
        except ValueError:
            return None
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
