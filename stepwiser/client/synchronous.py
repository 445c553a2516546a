"""`JudgeClient`: what `AsyncJudgeClient` does, for programs without an event loop of their own."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, Self, TypeVar, Unpack

from stepwiser.client.asynchronous import AsyncJudgeClient, Event
from stepwiser.client.errors import JudgeError
from stepwiser.client.types import (
    JudgeOptions,
    JudgeResponse,
    ScoreOptions,
    ScoreResponse,
    Solution,
    Version,
)

T = TypeVar("T")


class JudgeClient:
    """A served judge, from any number of threads; use it with `with`, or call `close`.

    Takes and raises what `AsyncJudgeClient` does, which works in a thread behind it. It can be
    pickled, and a process that was forked from one that has asked connects anew.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        deadline_s: float = 600.0,
        retries: int = 6,
        batch_size: int = 16,
        concurrency: int = 4,
    ) -> None:
        """As of `AsyncJudgeClient`."""
        self._settings: dict[str, Any] = {
            "address": address,
            "key": key,
            "deadline_s": deadline_s,
            "retries": retries,
            "batch_size": batch_size,
            "concurrency": concurrency,
        }
        self.__setstate__(self._settings)

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settings = state
        self._starting = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        """As before the first request; raises UserError for settings that cannot be."""
        self._client = AsyncJudgeClient(**self._settings)
        self._process = os.getpid()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way, give the connections back and end the thread."""
        with self._starting:
            if self._thread is not None and self._process == os.getpid():
                self._run(self._end())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
            self._reset()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    # --- requests ---------------------------------------------------------------------------------

    def judge(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[JudgeOptions],
    ) -> JudgeResponse:
        """Verdict, score and analysis of every step of a solution, given as steps or whole."""
        self._here()
        return self._run(self._client.judge(problem, steps, response=response, **options))

    def score(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResponse:
        """One number for a solution."""
        self._here()
        return self._run(self._client.score(problem, steps, response=response, **options))

    def judge_many(
        self, solutions: Sequence[Solution], **options: Unpack[JudgeOptions]
    ) -> list[JudgeResponse | JudgeError]:
        """What became of each solution, in their order."""
        self._here()
        return self._run(self._client.judge_many(solutions, **options))

    def score_many(
        self, solutions: Sequence[Solution], **options: Unpack[ScoreOptions]
    ) -> list[ScoreResponse | JudgeError]:
        """What became of each solution, in their order."""
        self._here()
        return self._run(self._client.score_many(solutions, **options))

    def version(self) -> Version:
        """What is served, and by which rule its judge's labels were made."""
        self._here()
        return self._run(self._client.version())

    def stream(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[JudgeOptions],
    ) -> Generator[Event]:
        """`judge` as it comes about; closing the iterator takes the work out of the engine."""
        self._here()
        events = self._client.stream(problem, steps, response=response, **options)
        found: queue.Queue[Event | BaseException | None] = queue.Queue()

        async def follow() -> None:
            try:
                async for event in events:
                    found.put(event)
                found.put(None)
            except BaseException as error:
                found.put(error)
                if not isinstance(error, JudgeError):
                    raise
            finally:
                await events.aclose()

        task = asyncio.run_coroutine_threadsafe(follow(), self._loop)
        try:
            while (event := found.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            task.cancel()

    # --- the thread -------------------------------------------------------------------------------

    def _here(self) -> None:
        """Make sure that the thread runs in this process: a fork has the object and no thread."""
        with self._starting:
            if self._process != os.getpid():
                self._reset()
            if self._thread is None:
                # Not before: a loop that a fork finds at rest it closes, and with it the pipe that
                # wakes the loop of the process it came from.
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._thread = threading.Thread(target=run, daemon=True, name="judge-client")
                self._thread.start()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C here ends the request too
            raise
