"""The command with engines and labelers that certain problems end: `python -m tests.chaos.fragile`.

No prompt makes vLLM itself crash at will, so the engine here is vLLM's with a fuse.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import ray

import pipelines.annotation.dispatch
from actors.engine.engine import Engine, EngineOptions
from actors.rollout.labeler import MonteCarloLabeler
from pipelines import cli
from pipelines.stages import runner
from stepwiser.data.records import Problem
from stepwiser.prompting.generation import Sample, Sampling

ENDS_ENGINES = "has 41 "
"""What every problem says that no engine survives."""
ENDS_LABELERS = "has 33 "
FUSE_S = 0.3
"""From the arrival of a problem to the end: others have come by then."""


class FragileEngine(Engine):
    """Ends its process when it has been asked a certain problem, which it never answers."""

    def __init__(self, options: EngineOptions) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(options.model)
        super().__init__(options)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling) -> Future[list[Sample]]:
        if ENDS_ENGINES in self._tokenizer.decode(list(prompt_ids)):
            threading.Timer(FUSE_S, os._exit, (1,)).start()
            # Answered, it would not be there any more when the end comes, and others be blamed.
            return Future()
        return super().submit(prompt_ids, sampling)


class FragileLabeler(MonteCarloLabeler.__ray_metadata__.modified_class):
    """Ends its process when it has been given a certain problem, which it never finishes."""

    async def _try(self, problem: Problem, *rest: Any) -> Any:
        if ENDS_LABELERS in problem.question and not any(rest[1:]):
            threading.Timer(FUSE_S, os._exit, (1,)).start()
            await asyncio.Event().wait()
        return await super()._try(problem, *rest)


def main() -> None:
    options = MonteCarloLabeler._default_options
    pipelines.annotation.dispatch.MonteCarloLabeler = ray.remote(**options)(FragileLabeler)
    runner.Session = functools.partial(runner.Session, build=FragileEngine)
    cli.main()


if __name__ == "__main__":
    from tests.chaos import fragile  # by its name, which other processes can import

    fragile.main()
