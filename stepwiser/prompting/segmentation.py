"""Segmenters: who inserts the chunk tags (paper section 3.1).

All of them answer with a segmentation that reconstructs the response exactly, or with None.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from stepwiser.errors import UserError
from stepwiser.prompting.chunks import is_exact_segmentation
from stepwiser.prompting.generation import Generator, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import answer_of, answer_start


class Segmenter(Protocol):
    """Inserts `<chunk>` tags into a response, or gives up."""

    async def segment(self, response: str) -> str | None: ...


@dataclass(frozen=True)
class RuleSegmenter:
    """The embedded task's teacher: its solutions have one operation a line."""

    async def segment(self, response: str) -> str | None:
        from stepwiser.tasks import segment_plain

        segmented = segment_plain(response)
        if segmented is None or not is_exact_segmentation(response, segmented):
            return None
        return segmented


@dataclass(frozen=True)
class PromptedSegmenter:
    """A prompted LLM on our own engines; the first exact one of several samples is taken."""

    generator: Generator
    prompts: PromptFormat
    samples: int
    max_tokens: int

    async def segment(self, response: str) -> str | None:
        prompt = self.prompts.ask(self.prompts.segment_message(response))
        samples = await self.generator.generate(
            prompt, Sampling(max_tokens=self.max_tokens, n=self.samples, temperature=0.7)
        )
        said = [answer_of(sample.text) for sample in self.prompts.heard(samples)]
        return first_exact(response, said)


@dataclass(frozen=True)
class OpenAISegmenter:
    """Any OpenAI-compatible URL; the key is read from OPENAI_API_KEY."""

    client: Any
    model: str
    message: PromptFormat
    samples: int
    max_tokens: int

    async def segment(self, response: str) -> str | None:
        for _ in range(self.samples):
            answer = await self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": self.message.segment_message(response)}],
                max_tokens=self.max_tokens,
                temperature=0.7,
            )
            exact = first_exact(response, [answer_of(answer.choices[0].message.content or "")])
            if exact is not None:
                return exact
        return None


def openai_segmenter(
    url: str | None, model: str | None, prompts: PromptFormat, samples: int, max_tokens: int
) -> OpenAISegmenter:
    """Raises UserError when the URL or the model is not given."""
    if not url or not model:
        raise UserError(
            "segment.segmenter=openai needs segment.segmenter_url and segment.segmenter_model"
        )
    import os

    from openai import AsyncOpenAI

    # Local servers ask for no key, but the client insists on one.
    key = os.environ.get("OPENAI_API_KEY", "none")
    client = AsyncOpenAI(base_url=url, api_key=key, max_retries=5, timeout=300)
    return OpenAISegmenter(client, model, prompts, samples, max_tokens)


def first_exact(response: str, candidates: list[str]) -> str | None:
    """The first candidate that only adds tags; models like to wrap their answer in white space."""
    for candidate in candidates:
        for text in (candidate, candidate.strip()):
            if is_exact_segmentation(response, text):
                return text
    return None


async def segment_all(segmenter: Segmenter, responses: list[str]) -> list[str | None]:
    """Segment many responses at once; the engine or the server queues them.

    What a response thinks first is left as it is: only its answer gets tags.
    """
    gate = asyncio.Semaphore(256)

    async def one(response: str) -> str | None:
        start = answer_start(response) or 0
        answer = response[start:].lstrip() if start else response
        async with gate:
            segmented = await segmenter.segment(answer)
        return None if segmented is None else response.removesuffix(answer) + segmented

    return list(await asyncio.gather(*(one(r) for r in responses)))
