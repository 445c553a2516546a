"""ExperienceCollector: judge prompts in, scored groups of verdicts out.

The learner asks for the batch of a step. Which prompts a step reads follows from (seed, step)
alone, or from the log of a live annotation, so a restarted learner is served the same prompts and
the collector keeps no position of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from actors.client import PoolClient
from actors.prompt_source import FinishedPrompts, LiveOptions, LivePrompts, PromptSource
from stepwiser.config import PromptConfig
from stepwiser.config.training import TrainConfig
from stepwiser.errors import UserError
from stepwiser.experience import Experience, ExperienceBatch
from stepwiser.generation import Sample, Sampling
from stepwiser.grpo import group_advantages, zero_variance
from stepwiser.judging import parse_verdict, verdict_reward
from stepwiser.prompts import PromptFormat
from stepwiser.records import JudgePrompt

MAX_ROUNDS = 4
"""Times a step may draw further prompts while every group agrees with itself."""


@dataclass(frozen=True)
class CollectorOptions:
    """What the collector samples."""

    model_dir: str
    prompts: PromptConfig
    train: TrainConfig
    max_response_tokens: int
    seed: int
    live: LiveOptions | None = None
    """For prompts that are offered while training goes on."""
    heldout_limit: int = 256


def _remedy(silent: float) -> str:
    """What to change when no group has a gradient and this share of answers has no verdict."""
    if silent > 0.5:
        return (
            "the judge does not end with \\boxed{Positive} or \\boxed{Negative}; change "
            "prompts.judge, raise judge_max_tokens, lower train.temperature or use a stronger model"
        )
    return "raise train.group_size or train.temperature, or start from an earlier checkpoint"


@ray.remote(num_cpus=0, max_concurrency=64)
class ExperienceCollector:
    """One long-lived actor between the engines and the learner."""

    def __init__(
        self,
        options: CollectorOptions,
        pool: PoolClient,
        prompts: list[JudgePrompt],
        heldout: list[JudgePrompt],
    ) -> None:
        self.options = options
        self.pool = pool
        self.format = PromptFormat.from_model_dir(options.model_dir, options.prompts)
        self.live = LivePrompts(options.live, options.seed) if options.live else None
        self.source: PromptSource = self.live or FinishedPrompts(
            prompts, options.train.prompts_per_step, options.seed
        )
        self.heldout = heldout[: options.heldout_limit]
        self._steps: dict[int, asyncio.Task[ExperienceBatch]] = {}
        self._figures_of_step: dict[str, float] = {}
        self.version = -1

    async def offer(self, prompts: list[JudgePrompt], heldout: list[JudgePrompt]) -> int:
        """Take in the prompts of an annotated unit; returns how many more should be made."""
        assert self.live is not None, "the prompts of a finished annotation are all there"
        room = max(0, self.options.heldout_limit - len(self.heldout))
        self.heldout += heldout[:room]
        self.live.offer(prompts)
        return self.live.wanted()

    async def wanted(self) -> int:
        """Prompts that a live annotation should make now."""
        assert self.live is not None
        return self.live.wanted()

    async def end_of_prompts(self, failure: str | None = None) -> None:
        """No more will be offered: all problems are annotated, or annotation has failed."""
        assert self.live is not None
        if failure is None:
            self.live.close()
        else:
            self.live.fail(failure)

    async def next_batch(self, step: int) -> ExperienceBatch:
        """The experience of one step; every rank that asks gets the same batch."""
        if step not in self._steps:
            self._steps = {step: asyncio.ensure_future(self._collect(step))}
        return await asyncio.shield(self._steps[step])

    async def publish(self, version: int, weights: Any, timeout_s: float) -> dict[str, float]:
        """Load weights into every engine; anything sampled with older ones is forgotten.

        Returns the figures of the rollouts that this version was trained on, and held-out accuracy
        every `train.evaluate_every` versions.
        """
        await self.pool.update_weights(weights, version, timeout_s)
        self.version = version
        self._steps = {}
        figures, self._figures_of_step = self._figures_of_step, {}
        every = self.options.train.evaluate_every
        if every and self.heldout and version and version % every == 0:
            figures |= await self._validate()
        return figures

    async def keep_copy(self, version: int, refs: list[Any]) -> None:
        """Blobs of weights that the learner sent to the engines itself, for those that join."""
        await self.pool.keep_copy(version, refs)

    async def sleep(self) -> None:
        """Free the engines' memory for the learner, until the next publish."""
        await self.pool.sleep()

    async def _collect(self, step: int) -> ExperienceBatch:
        config = self.options.train
        started = time.monotonic()
        experiences: list[Experience] = []
        figures: list[dict[str, float]] = []
        waited = 0.0
        for draw in range(MAX_ROUNDS):
            asked = time.monotonic()
            chosen = await self.source.draw(step, draw)
            waited += time.monotonic() - asked
            groups = await asyncio.gather(*(self._sample(p, config.group_size) for p in chosen))
            rewards = np.array(
                [
                    [verdict_reward(parse_verdict(s.text), p.label) for s in samples]
                    for p, (_, samples) in zip(chosen, groups, strict=True)
                ]
            )
            experiences += self._experiences(groups, rewards, len(experiences))
            figures.append(self._figures(chosen, [samples for _, samples in groups], rewards))
            if experiences:
                break
        if not experiences:
            silent = float(np.mean([f["share_no_verdict"] for f in figures]))
            raise UserError(
                f"step {step}: {MAX_ROUNDS} draws of {config.prompts_per_step} prompts gave no "
                f"group whose rewards differ, so there is nothing to learn from; {silent:.0%} of "
                f"the answers hold no verdict: {_remedy(silent)}"
            )
        self._figures_of_step = {
            key: float(np.nanmean([f[key] for f in figures])) for key in figures[0]
        } | {"seconds_collect": time.monotonic() - started, "draws": float(len(figures))}
        if self.live is not None:
            unread = self.live.unread
            self._figures_of_step |= {
                "seconds_for_prompts": waited,
                "unread_positive": float(unread[True]),
                "unread_negative": float(unread[False]),
            }
        return ExperienceBatch.from_experiences(experiences)

    async def _sample(self, prompt: JudgePrompt, n: int) -> tuple[list[int], list[Sample]]:
        ids = self.format.judge_ids(prompt.question, prompt.history, prompt.chunk)
        sampling = Sampling(
            max_tokens=self.options.max_response_tokens,
            n=n,
            temperature=self.options.train.temperature,
            logprobs=True,
        )
        return ids, await self.pool.generate(ids, sampling)

    def _experiences(
        self,
        groups: Sequence[tuple[list[int], list[Sample]]],
        rewards: np.ndarray[Any, Any],
        first_group: int,
    ) -> list[Experience]:
        import torch

        tensor = torch.tensor(rewards, dtype=torch.float32)
        advantages = group_advantages(tensor, normalize_std=self.options.train.normalize_advantages)
        flat = zero_variance(tensor)
        return [
            Experience(
                prompt_ids=ids,
                response_ids=sample.token_ids,
                advantage=float(advantages[g, k]),
                reward=float(rewards[g, k]),
                group=first_group + g,
                weight_version=sample.weight_version,
                engine_logprobs=sample.logprobs,
            )
            for g, (ids, samples) in enumerate(groups)
            if not flat[g]
            for k, sample in enumerate(samples)
        ]

    def _figures(
        self,
        prompts: Sequence[JudgePrompt],
        groups: Sequence[Sequence[Sample]],
        rewards: np.ndarray[Any, Any],
    ) -> dict[str, float]:
        labels = np.array([p.label for p in prompts])
        samples = [s for group in groups for s in group]
        verdicts = [parse_verdict(s.text) for s in samples]
        lengths = [len(s.token_ids) for s in samples]
        deviations = rewards.std(axis=1)
        return {
            "reward": float(rewards.mean()),
            "accuracy_positive": float(rewards[labels].mean()),
            "accuracy_negative": float(rewards[~labels].mean()),
            "share_positive": float(np.mean([v is True for v in verdicts])),
            "share_no_verdict": float(np.mean([v is None for v in verdicts])),
            "mixed_groups": float((deviations > 0).mean()),
            "response_length": float(np.mean(lengths)),
            "response_length_max": float(max(lengths)),
            "truncated": float(np.mean([s.truncated for s in samples])),
            "generated_tokens": float(sum(lengths)),
        }

    async def _validate(self) -> dict[str, float]:
        """Verdict accuracy per class on held-out labels, one sample each."""
        groups = await asyncio.gather(*(self._sample(p, 1) for p in self.heldout))
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for prompt, (_, samples) in zip(self.heldout, groups, strict=True):
            hits[prompt.label].append(parse_verdict(samples[0].text) is prompt.label)
        figures = {
            f"heldout_{name}": float(np.mean(hits[label])) if hits[label] else float("nan")
            for label, name in ((True, "positive"), (False, "negative"))
        }
        figures["heldout_balanced"] = sum(figures.values()) / 2
        return figures
