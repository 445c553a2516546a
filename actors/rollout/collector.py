"""ExperienceCollector: judge prompts in, scored groups of verdicts out.

Producer to the learner's consumer: every publish of weights lets it begin the steps that these
weights may sample (`stepwiser.training.staleness`), and the learner asks for the batch of a step
when it comes to it. Which prompts a step reads follows from (seed, step) alone, or from the log of
a live annotation, so a restarted learner is served the same prompts and the collector keeps no
position of its own.

A sample's weight version is that of the engine when its request was let in. Weights that come while
it is answered go on with it: later tokens are theirs, and every token has the log-prob of the
weights that sampled it. So the version never makes a sample look fresher than any of its tokens.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from actors.engine.engine import EngineFailure
from actors.pinned import Pinned
from actors.pool.client import EnginesEnded, PoolClient
from actors.rollout.idle_clock import IdleClock
from actors.rollout.prompt_source import (
    FinishedPrompts,
    FinishedSolutions,
    LiveOptions,
    LivePrompts,
    PromptSource,
)
from stepwiser.config import PromptConfig
from stepwiser.config.training import TrainConfig
from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.verdicts import parse_verdict
from stepwiser.training.experience import Experience, ExperienceBatch
from stepwiser.training.grpo import group_advantages
from stepwiser.training.rewards import score_groups
from stepwiser.training.staleness import Phase, StalenessGate, sample_age


@dataclass(frozen=True)
class CollectorOptions:
    """What the collector samples."""

    model_dir: str
    prompts: PromptConfig
    train: TrainConfig
    max_response_tokens: int
    context_length: int
    """Tokens of prompt and response together that engines and learner have room for."""
    seed: int
    live: LiveOptions | None = None
    """For prompts that are offered while training goes on."""
    heldout_limit: int = 256
    balanced: bool = True
    """Half of a step of either class (label.balance)."""
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Group:
    """The samples of one prompt and what each of them earned."""

    prompt: JudgePrompt
    prompt_ids: list[int]
    samples: list[Sample]
    rewards: list[float]

    @property
    def flat(self) -> bool:
        """All earned the same, so there is no gradient in it."""
        return len(set(self.rewards)) == 1


def _remedy(silent: float) -> str:
    """What to change when no group has a gradient and this share of answers has no verdict."""
    if silent > 0.5:
        return (
            "the judge does not end with \\boxed{Positive} or \\boxed{Negative}; change "
            "prompts.judge, raise judge_max_tokens (thinking counts), lower train.temperature or "
            "use a stronger model"
        )
    return "raise train.group_size or train.temperature, or start from an earlier checkpoint"


def _share_right(rewards: np.ndarray[Any, Any]) -> float:
    """Of these answers; nan where there are none, as may be without balance."""
    return float((rewards == 1.0).mean()) if rewards.size else float("nan")


def _finished(options: CollectorOptions, prompts: list[JudgePrompt]) -> PromptSource:
    per_step = options.train.prompts_per_step
    if options.train.reward == "outcome":
        return FinishedSolutions(prompts, per_step, options.seed)
    return FinishedPrompts(prompts, per_step, options.seed, options.balanced)


@ray.remote(num_cpus=0, max_concurrency=64, max_restarts=-1, max_task_retries=-1)
class ExperienceCollector:
    """One long-lived actor between the engines and the learner.

    A restarted one has the prompts it was made with, and is asked again what it was being asked.
    """

    def __init__(
        self,
        options: CollectorOptions,
        pool: Pinned[PoolClient],
        prompts: Pinned[list[JudgePrompt]],
        heldout: Pinned[list[JudgePrompt]],
    ) -> None:
        self.options = options
        self.pool = pool.get()
        self.format = PromptFormat.from_model_dir(
            options.model_dir, options.prompts, options.trust_remote_code
        )
        self.live = LivePrompts(options.live, options.seed) if options.live else None
        self.source: PromptSource = self.live or _finished(options, prompts.get())
        self.heldout = heldout.get()[: options.heldout_limit]
        self.gate = StalenessGate(options.train.staleness, options.train.steps)
        self._steps: dict[int, asyncio.Task[ExperienceBatch]] = {}
        self._figures_of_step: dict[int, dict[str, float]] = {}
        self._hopeless: dict[str, str] = {}
        self._clock = IdleClock()
        self._life = uuid.uuid4().hex
        self._units: set[str] = set()

    async def offer(self, unit: str, prompts: list[JudgePrompt], heldout: list[JudgePrompt]) -> int:
        """Take in the prompts of an annotated unit; returns how many more should be made."""
        assert self.live is not None, "the prompts of a finished annotation are all there"
        if unit in self._units:  # repeated, as this actor ended the first time
            return self.live.wanted()
        self._units.add(unit)
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

    async def heldout_prompts(self) -> list[JudgePrompt]:
        """What judges are evaluated on, as far as it fits; a live annotation adds to it."""
        return [prompt for prompt, _ in self._fitting(self.heldout)]

    async def life(self) -> str:
        """Another one after each restart, which forgets the prompts that were offered."""
        return self._life

    async def next_batch(self, step: int) -> ExperienceBatch:
        """The experience of one step; every rank that asks gets the same batch.

        Raises RuntimeError for a step that the published weights do not allow.
        """
        if self.gate.version is None and ray.get_runtime_context().was_current_actor_reconstructed:
            # A learner asks for a step when all engines have its version.
            self.gate.publish(step)
            self._begin_steps()
        if step not in self._steps:
            raise RuntimeError(
                f"step {step} was asked for while the engines hold weight version "
                f"{self.gate.version}: publish version {step} first"
            )
        batch = await asyncio.shield(self._steps[step])
        sample_age(step, int(batch.weight_versions.min()), self.gate.bound)
        return batch

    async def publish(self, version: int, weights: Any, timeout_s: float) -> dict[str, float]:
        """Load weights into every engine and begin the steps that they may sample.

        Requests under way go on with the new weights. Only when the learner has gone back is what
        was sampled for later steps given up. Returns the figures of the rollouts that this version
        was trained on.
        """
        await self.pool.update_weights(weights, version, timeout_s)
        for step in self.gate.publish(version):
            self._steps.pop(step).cancel()
        self._steps = {step: task for step, task in self._steps.items() if step >= version}
        figures = self._figures_of_step.pop(version - 1, {})
        self._figures_of_step = {k: v for k, v in self._figures_of_step.items() if k in self._steps}
        idle = self._clock.idle(await self.pool.stats())
        if figures and idle is not None:
            figures["engine_idle"] = idle
        self._begin_steps()
        return figures

    def _begin_steps(self) -> None:
        while (step := self.gate.admit()) is not None:
            task = asyncio.ensure_future(self._collect(step))
            # Whoever asks for the step is told; that nobody does is no news.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._steps[step] = task

    def _advance(self, step: int, phase: Phase) -> None:
        self.gate.advance(step, phase)
        self._begin_steps()

    async def keep_copy(self, version: int, refs: list[Any]) -> None:
        """Blobs of weights that the learner sent to the engines itself, for those that join."""
        await self.pool.keep_copy(version, refs)

    async def sleep(self) -> None:
        """Free the engines' memory for the learner, until the next publish."""
        await self.pool.sleep()

    async def _collect(self, step: int) -> ExperienceBatch:
        """Sample a step: its prompts, and further ones for groups that have no gradient.

        Those are sampled while there is no other group at all, or with `train.dynamic_sampling`
        as many as are missing, in up to `train.max_sampling_rounds` rounds.
        """
        config = self.options.train
        started = time.monotonic()
        groups: list[Group] = []
        useful = too_long = rounds = 0
        waited = 0.0
        while rounds < config.max_sampling_rounds:
            asked = time.monotonic()
            missing = config.prompts_per_step - useful if rounds else None
            chosen = await self.source.sample(step, rounds, missing)
            waited += time.monotonic() - asked
            rounds += 1
            fitting = self._fitting(chosen)
            too_long += len(chosen) - len(fitting)
            groups += await self._sample_groups(step, fitting)
            useful = sum(not group.flat for group in groups)
            wanted = config.prompts_per_step if config.dynamic_sampling else 1
            if useful >= wanted:
                break
        if not useful:
            raise UserError(f"step {step}: {self._nothing_to_learn(groups, rounds, too_long)}")
        self._figures_of_step[step] = self._figures(groups) | {
            "sampling_rounds": float(rounds),
            "useful_groups": float(useful),
            "flat_groups": float(len(groups) - useful),
            "prompts_too_long": float(too_long),
            "samples": float(sum(len(group.samples) for group in groups)),
            "seconds_collect": time.monotonic() - started,
        }
        if self.live is not None:
            unread = self.live.unread
            self._figures_of_step[step] |= {
                "seconds_for_prompts": waited,
                "unread_positive": float(unread[True]),
                "unread_negative": float(unread[False]),
            }
        batch = ExperienceBatch.from_experiences(self._experiences(groups))
        self._advance(step, Phase.READY)
        return batch

    def _fitting(self, prompts: Sequence[JudgePrompt]) -> list[tuple[JudgePrompt, list[int]]]:
        """Prompts with their token ids that leave room for the longest response."""
        room = self.options.context_length - self.options.max_response_tokens
        rendered = [(p, self.format.judge_ids(p.question, p.history, p.chunk)) for p in prompts]
        return [(prompt, ids) for prompt, ids in rendered if len(ids) <= room]

    async def _sample_groups(
        self, step: int, prompts: Sequence[tuple[JudgePrompt, list[int]]]
    ) -> list[Group]:
        """A group of verdicts for each prompt, with their rewards."""
        n, unanswered = self.options.train.group_size, len(prompts)

        async def sample(prompt: JudgePrompt, ids: list[int]) -> list[Sample]:
            nonlocal unanswered
            samples = self.format.heard(await self._sample(prompt, ids, n))
            unanswered -= 1
            if unanswered == len(prompts) // 2:
                self._advance(step, Phase.DRAINING)
            return samples

        calls = [asyncio.ensure_future(sample(*prompt)) for prompt in prompts]
        try:
            answers = await asyncio.gather(*calls)
        except BaseException:
            for call in calls:
                call.cancel()
            raise
        asked = [prompt for prompt, _ in prompts]
        texts = [[sample.text for sample in samples] for samples in answers]
        rewards = score_groups(self.options.train.reward, asked, texts)
        return [
            Group(prompt, ids, samples, row)
            for (prompt, ids), samples, row in zip(prompts, answers, rewards, strict=True)
        ]

    async def _sample(self, prompt: JudgePrompt, ids: list[int], n: int) -> list[Sample]:
        """Raises UserError, naming the prompt, when it cannot be answered.

        The pool repeats a request whose engine died (`pool.quarantine`): what comes out of it as a
        failure ends every engine, or has none left. Such a group is neither left out, which would
        favour prompts that are easily answered, nor scored.
        """
        sampling = Sampling(
            max_tokens=self.options.max_response_tokens,
            n=n,
            temperature=self.options.train.temperature,
            logprobs=True,
        )
        if prompt.prompt_id in self._hopeless:  # a restarted learner asks again
            raise UserError(self._hopeless[prompt.prompt_id])
        try:
            return await self.pool.generate(ids, sampling)
        except (EngineFailure, UserError) as failure:
            message = (
                f"judge prompt {prompt.prompt_id} (problem {prompt.problem_id}, chunk "
                f"{prompt.chunk_index}, {len(ids)} tokens) could not be answered: {failure}"
            )
            if isinstance(failure, EnginesEnded):
                message += "; take its problem out of the data, or look at the engines' logs"
                self._hopeless[prompt.prompt_id] = message
            raise UserError(message) from failure

    def _experiences(self, groups: Sequence[Group]) -> list[Experience]:
        import torch

        rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float32)
        normalize = self.options.train.normalize_advantages
        advantages = group_advantages(rewards, normalize_std=normalize).tolist()
        return [
            Experience(
                prompt_ids=group.prompt_ids,
                response_ids=sample.token_ids,
                advantage=advantages[g][k],
                reward=group.rewards[k],
                group=g,
                weight_version=sample.weight_version,
                engine_logprobs=sample.logprobs,
            )
            for g, group in enumerate(groups)
            if not group.flat
            for k, sample in enumerate(group.samples)
        ]

    def _figures(self, groups: Sequence[Group]) -> dict[str, float]:
        rewards = np.array([group.rewards for group in groups])
        labels = np.array([group.prompt.label for group in groups])
        samples = [sample for group in groups for sample in group.samples]
        verdicts = [parse_verdict(s.text) for s in samples]
        lengths = [len(s.token_ids) for s in samples]
        deviations = rewards.std(axis=1)
        return {
            "reward": float(rewards.mean()),
            "accuracy_positive": _share_right(rewards[labels]),
            "accuracy_negative": _share_right(rewards[~labels]),
            "share_positive": float(np.mean([v is True for v in verdicts])),
            "share_no_verdict": float(np.mean([v is None for v in verdicts])),
            "mixed_groups": float((deviations > 0).mean()),
            "response_length": float(np.mean(lengths)),
            "response_length_max": float(max(lengths)),
            "truncated": float(np.mean([s.truncated for s in samples])),
            "generated_tokens": float(sum(lengths)),
        }

    def _nothing_to_learn(self, groups: Sequence[Group], rounds: int, too_long: int) -> str:
        config = self.options.train
        if not groups:
            return (
                f"all {too_long} prompts of {rounds} rounds are too long: with responses of up to "
                f"{self.options.max_response_tokens} tokens they may not exceed "
                f"{self.options.context_length - self.options.max_response_tokens}; lower "
                "train.max_response_tokens, or raise engine.max_model_len or "
                "learner.max_tokens_per_microbatch"
            )
        silent = self._figures(groups)["share_no_verdict"]
        return (
            f"{rounds} rounds of {config.prompts_per_step} prompts gave no group whose rewards "
            f"differ, so there is nothing to learn from; {silent:.0%} of the answers hold no "
            f"verdict: {_remedy(silent)}"
        )
