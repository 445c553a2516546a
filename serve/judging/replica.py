"""One replica: an engine in this process, and the judge that asks it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from actors.engine.engine import Engine, EngineFailure, EngineOptions, EngineStats
from serve.errors import Failure
from serve.judging.service import Event, JudgeService
from serve.protocols.chat import ChatChoice, ChatRequest, ChatResult
from serve.schema import JudgeCard, JudgeRequest, JudgeResponse, ModelInfo, Solution
from stepwiser.config import PromptConfig
from stepwiser.config.addresses import object_address
from stepwiser.errors import UserError
from stepwiser.judging.judges import GenerativeJudge, JudgeVerdict
from stepwiser.prompting.generation import Generator, Sample, Sampling
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.model_card import read_judge_settings

T = TypeVar("T")

PROVEN_S = 10.0
"""How long an answer proves that the judge answers."""
PROBE_S = 5.0
"""Longest wait for a token that is to prove it."""


@dataclass(frozen=True)
class ReplicaOptions:
    """Everything a replica needs."""

    engine: EngineOptions
    """Its model is the judge: a Hugging Face name, or a directory that every node can reach."""
    prompts: PromptConfig
    max_tokens: int
    """Longest analysis and verdict."""
    votes: int = 1
    temperature: float = 1.0
    label_rule: str | None = None
    revision: str | None = None


def judge_service(options: ReplicaOptions, generator: Generator) -> JudgeService:
    """The judge of these options over whatever generates with its weights.

    Its version is read here, where the weights are: whoever deploys may have seen others.
    """
    model = options.engine.model
    settings = read_judge_settings(model_folder(model, weights=False))
    version = 0 if settings is None else settings.version
    return JudgeService(
        judge=GenerativeJudge(
            generator=generator,
            prompts=PromptFormat.from_model_dir(
                model, options.prompts, options.engine.trust_remote_code
            ),
            sampling=Sampling(options.max_tokens, n=options.votes, temperature=options.temperature),
        ),
        max_model_len=options.engine.max_model_len,
        model=ModelInfo(name=served_name(model), weight_version=version),
    )


class JudgeReplica:
    """Answers with what was asked for or with a `Failure`; raises only for faults of its own."""

    def __init__(self, options: ReplicaOptions) -> None:
        self._options = options
        self._engine = Engine(options.engine)
        self._engine.wait_ready()
        self._service = judge_service(options, self._engine)
        self._prompts = self._service.judge.prompts
        self._answered = -PROVEN_S

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica whose engine has died."""
        await self._engine.check_health()

    async def card(self) -> JudgeCard:
        """What is served."""
        service = self._service
        return JudgeCard(
            model=service.model,
            revision=self._options.revision,
            label_rule=self._options.label_rule,
            max_prompt_tokens=service.max_prompt_tokens,
            max_judge_tokens=self._options.max_tokens,
        )

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    async def stats(self) -> EngineStats:
        """What the engine has counted."""
        return self._engine.stats()

    async def probe(self) -> JudgeCard | Failure:
        """The card of a judge that answers: its engine lives, and has lately, or does so now."""
        try:
            await self._engine.check_health()
        except EngineFailure as error:
            return failure_of(error)
        if time.monotonic() - self._answered > PROVEN_S:
            prompt = self._prompts.ask("?")
            failure = await self._answer(
                asyncio.wait_for(self._engine.generate(prompt, Sampling(max_tokens=1)), PROBE_S)
            )
            if isinstance(failure, Failure):
                return failure
        return await self.card()

    async def judge(self, request: Solution) -> JudgeResponse | Failure:
        """Judge one solution."""
        return await self._answer(self._service.answer(request))

    async def judge_chunk(
        self, problem: str, history: tuple[str, ...], chunk: str, temperature: float
    ) -> JudgeVerdict | Failure:
        """Judge one chunk of a search."""
        return await self._answer(self._service.judge_chunk(problem, history, chunk, temperature))

    async def judge_stream(self, request: JudgeRequest) -> AsyncGenerator[list[Event] | Failure]:
        """Judge one solution and tell of it while it is judged."""
        try:
            async with aclosing(self._service.stream(request)) as events:
                async for found in events:
                    yield found
            self._answered = time.monotonic()
        except (UserError, EngineFailure) as error:
            yield failure_of(error)

    async def chat(self, request: ChatRequest) -> ChatResult | Failure:
        """Continue a conversation."""
        return await self._answer(self._chat(request))

    async def chat_stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatResult | Failure]:
        """Pieces of the one sample as they come, and what `chat` gives at the end."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        try:
            prompt, sampling = self._chat_prompt(request)
            sample = asyncio.ensure_future(self._engine.stream(prompt, sampling, on_text))
            sample.add_done_callback(lambda _: pieces.put_nowait(None))
            told = ""
            try:
                while (text := await pieces.get()) is not None:
                    if len(text) > len(told):
                        yield text[len(told) :]
                        told = text
                result = self._chat_result(prompt, [await sample], sampling.stop)
            finally:
                sample.cancel()
            if rest := result.choices[0].text[len(told) :]:
                yield rest
            self._answered = time.monotonic()
            yield result
        except (UserError, EngineFailure) as error:
            yield failure_of(error)

    # --- helpers ----------------------------------------------------------------------------------

    async def _answer(self, work: Awaitable[T]) -> T | Failure:
        try:
            result = await work
        except (UserError, EngineFailure) as error:
            return failure_of(error)
        except TimeoutError:
            return Failure(
                "unavailable", f"the judge gave no token in {PROBE_S:g} s", retry_after_s=PROBE_S
            )
        self._answered = time.monotonic()
        return result

    async def _chat(self, request: ChatRequest) -> ChatResult:
        prompt, sampling = self._chat_prompt(request)
        samples = await self._engine.generate(prompt, sampling)
        samples *= request.n // len(samples)  # greedy ones are all the same
        return self._chat_result(prompt, samples, sampling.stop)

    def _chat_prompt(self, request: ChatRequest) -> tuple[list[int], Sampling]:
        if request.stream and request.n > 1:
            raise UserError(f"n: is {request.n}; with stream it has to be 1")
        prompt = self._prompts.conversation_ids(request.turns())
        room = self._options.engine.max_model_len - len(prompt)
        if room < 1 or (request.limit or 1) > room:
            raise UserError(
                f"messages: make a prompt of {len(prompt)} tokens, which leaves {max(room, 0)} of "
                f"{self._options.engine.max_model_len} for the answer; shorten them"
                + (f" or lower max_tokens={request.limit}" if request.limit else "")
            )
        sampling = Sampling(
            max_tokens=request.limit or min(room, self._options.max_tokens),
            n=request.n if request.temperature else 1,
            temperature=request.temperature,
            stop=request.stops,
            seed=request.seed,
        )
        return prompt, sampling

    def _chat_result(
        self, prompt: list[int], samples: list[Sample], stops: tuple[str, ...]
    ) -> ChatResult:
        choices = [
            ChatChoice(
                text=_without_stop(sample.text, stops),
                finish_reason="length" if sample.truncated else "stop",
            )
            for sample in samples
        ]
        return ChatResult(
            choices=choices,
            model=self._service.model.name,
            prompt_tokens=len(prompt),
            completion_tokens=sum(len(sample.token_ids) for sample in samples),
        )


def served_name(model: str) -> str:
    """Of a name on the Hub without its commit, of a folder or an address the last part alone."""
    if object_address(model):
        return model.rpartition("/")[2]
    return Path(model).resolve().name if Path(model).is_dir() else model.partition("@")[0]


def _without_stop(text: str, stops: tuple[str, ...]) -> str:
    """As OpenAI's API gives it: what ended the text is not a part of it."""
    return next((text.removesuffix(stop) for stop in stops if text.endswith(stop)), text)


def failure_of(error: UserError | EngineFailure) -> Failure:
    """What a replica returns instead of raising."""
    if isinstance(error, EngineFailure):
        return Failure("engine_failed", str(error), retry_after_s=PROBE_S)
    message = str(error)
    name = message.partition(":")[0]
    # Messages about a request begin with its field.
    return Failure("invalid_request", message, name if " " not in name else None)
