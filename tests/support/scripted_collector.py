"""A real Ray actor that serves experience, and what the learner tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.training.experience import Experience, ExperienceBatch

GOOD_TOKENS = range(10, 60)
"""The reward of a response is its share of these."""


@ray.remote(num_cpus=0)
class ScriptedCollector:
    """Serves batches that depend on the step alone, or samples from the published weights."""

    def __init__(
        self,
        model_dir: str,
        *,
        on_policy: bool = False,
        fail_at: int | None = None,
        vocabulary: int = 400,
        heldout: Sequence[JudgePrompt] = (),
    ):
        self._model_dir = model_dir
        self._on_policy = on_policy
        self._fail_at = fail_at
        self._vocabulary = vocabulary
        self._heldout = heldout
        self._calls: list[tuple[str, int]] = []
        self._weights: dict[int, dict[str, Any]] = {}
        self._batches: dict[int, ExperienceBatch] = {}
        self._model: Any = None

    def next_batch(self, step: int) -> ExperienceBatch:
        self._calls.append(("next_batch", step))
        if step == self._fail_at:
            self._fail_at = None
            raise UserError(f"injected failure at step {step}")
        if step not in self._batches:
            self._batches[step] = (
                self._sampled(step) if self._on_policy else scripted_batch(step, self._vocabulary)
            )
        return self._batches[step]

    def heldout_prompts(self) -> Sequence[JudgePrompt]:
        return self._heldout

    def publish(self, version: int, refs: list[Any], timeout_s: float) -> dict[str, float]:
        from safetensors.numpy import load

        self._calls.append(("publish", version))
        weights: dict[str, Any] = {}
        for ref in refs:
            bucket = load(ray.get(ref))
            assert not weights.keys() & bucket.keys()
            weights |= bucket
        self._weights[version] = weights
        return {"reward": self._mean_reward()}

    def calls(self) -> list[tuple[str, int]]:
        return self._calls

    def weights(self, version: int) -> dict[str, Any]:
        return self._weights[version]

    def _mean_reward(self) -> float:
        last = max(self._batches, default=None)
        return float("nan") if last is None else float(self._batches[last].rewards.mean())

    def _sampled(self, step: int) -> ExperienceBatch:
        """Sixteen prompts, eight samples of six tokens each, from the newest weights."""
        import torch
        from transformers import AutoModelForCausalLM

        if self._model is None:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._model_dir, dtype=torch.float32
            ).eval()
        version = max(self._weights)
        state = {name: torch.tensor(value) for name, value in self._weights[version].items()}
        self._model.load_state_dict(state, strict=False)
        generator = torch.Generator().manual_seed(step)
        prompts = torch.randint(70, 400, (16, 5), generator=generator).repeat_interleave(8, dim=0)
        ids, logprobs = prompts, []
        with torch.no_grad():
            for _ in range(6):
                scores = self._model(input_ids=ids).logits[:, -1].log_softmax(-1)
                token = torch.multinomial(scores.exp(), 1, generator=generator)
                logprobs.append(scores.gather(1, token))
                ids = torch.cat([ids, token], dim=1)
        responses = ids[:, 5:]
        good = (responses >= GOOD_TOKENS.start) & (responses < GOOD_TOKENS.stop)
        rewards = good.float().mean(dim=1)
        advantages = (rewards.reshape(16, 8) - rewards.reshape(16, 8).mean(1, True)).reshape(-1)
        engine = torch.cat(logprobs, dim=1)
        return ExperienceBatch.from_experiences(
            [
                Experience(
                    prompt_ids=prompts[i].tolist(),
                    response_ids=responses[i].tolist(),
                    advantage=float(advantages[i]),
                    reward=float(rewards[i]),
                    group=i // 8,
                    weight_version=version,
                    engine_logprobs=engine[i].tolist(),
                )
                for i in range(len(responses))
            ]
        )


def scripted_batch(step: int, vocabulary: int = 400) -> ExperienceBatch:
    """Eight prompts with three responses of uneven lengths; the same for the same step."""
    rng = np.random.default_rng(step)
    prompts = [rng.integers(3, vocabulary, int(rng.integers(5, 40))) for _ in range(8)]
    return ExperienceBatch.from_experiences(
        [
            Experience(
                prompt_ids=prompts[i // 3],
                response_ids=rng.integers(3, vocabulary, int(rng.integers(1, 20))),
                advantage=float(rng.normal()),
                reward=float(rng.random()),
                group=i // 3,
                weight_version=step,
            )
            for i in range(24)
        ]
    )
