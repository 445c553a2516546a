"""One replica of the policy: an engine in this process that writes, and a way to the judges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from ray.serve.handle import DeploymentHandle

from actors.engine.engine import Engine, EngineFailure, EngineOptions, EngineStats
from serve.dispatch import Replicas
from serve.errors import ApiError, Failure
from serve.judging.replica import failure_of, served_name
from serve.judging.service import verdict_word
from serve.solving.schema import KeptChunk, SolveRequest, SolveResponse, SolveUsage, TriedChunk
from stepwiser.config import PromptConfig
from stepwiser.config.models import SolveConfig
from stepwiser.data.answers.boxes import boxed_answer
from stepwiser.data.records import Problem
from stepwiser.errors import UserError
from stepwiser.judging.judges import Judge, JudgeVerdict
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import answer_of
from stepwiser.search.chunk_reset import KeptCandidate, SearchEvent, TriedCandidate, chunk_reset
from stepwiser.search.policy import ChunkSampler, SearchJudge

Event = TriedChunk | KeptChunk | SolveResponse
"""Of a stream, in this order; the last one has no chunks."""


@dataclass(frozen=True)
class PolicyOptions:
    """Everything a replica of the policy needs."""

    engine: EngineOptions
    """Its model is the policy: a Hugging Face name, or a directory that every node can reach."""
    prompts: PromptConfig
    solve: SolveConfig
    """Defaults and limits of a request."""


@dataclass(frozen=True)
class RemoteJudge(Judge):
    """The judges of another deployment."""

    replicas: Replicas
    temperature: float

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        """Raises ApiError."""
        verdict: JudgeVerdict = await self.replicas.call(
            "judge_chunk", problem, tuple(history), chunk, self.temperature
        )
        return verdict


class PolicyReplica:
    """Answers with what was asked for or with a `Failure`; raises only for faults of its own."""

    def __init__(self, options: PolicyOptions, judges: DeploymentHandle) -> None:
        self._options = options
        self._judges = Replicas(judges)
        self._engine = Engine(options.engine)
        self._engine.wait_ready()
        self._name = served_name(options.engine.model)
        self._prompts = PromptFormat.from_model_dir(
            options.engine.model, options.prompts, options.engine.trust_remote_code
        )

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica whose engine has died."""
        await self._engine.check_health()

    async def stats(self) -> EngineStats:
        """What the engine has counted."""
        return self._engine.stats()

    async def solve_stream(self, request: SolveRequest) -> AsyncGenerator[Event | Failure]:
        """Solve one problem and tell of every chunk that is tried."""
        began = time.monotonic()
        events: asyncio.Queue[SearchEvent | None] = asyncio.Queue()
        task = asyncio.create_task(self._search(request, began, events.put_nowait))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (found := await events.get()) is not None:
                yield _told(found)
            yield await task
        except ApiError as error:
            yield error.failure
        except (UserError, EngineFailure) as error:
            yield failure_of(error)
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _search(
        self, request: SolveRequest, began: float, on_event: Callable[[SearchEvent], None]
    ) -> SolveResponse:
        solve = self._options.solve
        for name in ("max_chunks", "max_tokens"):
            asked, most = getattr(request, name), getattr(solve, name)
            if (asked or 0) > most:
                raise UserError(
                    f"{name}: is {asked}, this server's limit is {most}; leave it out or lower it"
                )
        sampler = ChunkSampler(
            self._engine,
            self._prompts,
            min(request.max_tokens or solve.max_tokens, self._room(request.problem)),
            solve.temperature if request.temperature is None else request.temperature,
        )
        result = await chunk_reset(
            Problem("", request.problem, ""),
            sampler,
            SearchJudge(RemoteJudge(self._judges, solve.judge_temperature)),
            request.samples_per_chunk or solve.samples_per_chunk,
            max_chunks=request.max_chunks or solve.max_chunks,
            on_event=on_event,
        )
        return SolveResponse(
            text=result.text,
            answer=boxed_answer(answer_of(result.text)),
            steps=list(result.chunks),
            scores=list(result.scores),
            forced=result.forced,
            finished=result.finished,
            tried=[],
            policy=self._name,
            usage=SolveUsage(
                accepted_tokens=result.accepted_tokens,
                rejected_tokens=result.rejected_tokens,
                judge_tokens=result.judge_tokens,
                milliseconds=round(1000 * (time.monotonic() - began), 1),
            ),
        )

    def _room(self, problem: str) -> int:
        """Tokens that the context leaves for a solution; UserError where it leaves none."""
        prompt, context = len(self._prompts.policy_ids(problem)), self._engine.context_length
        if prompt >= context:
            raise UserError(
                f"problem: makes a prompt of {prompt} tokens, and the policy reads and writes "
                f"{context} at most; shorten it or serve with a larger engine.max_model_len"
            )
        return context - prompt


def _told(found: SearchEvent) -> TriedChunk | KeptChunk:
    if isinstance(found, KeptCandidate):
        return KeptChunk(round=found.round, sample=found.sample, score=found.score)
    assert isinstance(found, TriedCandidate)
    verdict = found.verdict
    return TriedChunk(
        round=found.round,
        sample=found.sample,
        text=found.text,
        verdict=verdict_word(verdict.positive if verdict.decided else None),
        score=verdict.score,
        analysis=verdict.analysis,
        accepted=verdict.positive,
        policy_tokens=found.tokens,
        judge_tokens=verdict.tokens,
    )
