"""Evaluator: held-out labels and ProcessBench with a judge's weights, while training goes on.

It asks engines of its own, into which it loads each judge, or shares those that sample: the learner
then publishes no new weights before it is done. Either way every answer is of the one version.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from actors.pinned import Pinned
from actors.pool.client import PoolClient
from stepwiser.config import PromptConfig
from stepwiser.config.addresses import object_address
from stepwiser.data.records import JudgePrompt, StepItem
from stepwiser.evaluation.processbench import first_negative, score_official
from stepwiser.evaluation.scoring import judge_items
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.metrics_file import append_metrics, read_metrics
from stepwiser.run.model_exports import (
    EVALUATION_FILE,
    adapter_of,
    best_of,
    evaluations_since,
    is_model,
    keep_if_best,
    read_evaluation,
    write_model_file,
)

EVALUATION = "evaluation"
"""What its lines are called in the metrics file."""


@dataclass(frozen=True)
class EvaluatorOptions:
    """What a judge is scored on, and how the best one is chosen."""

    name: str
    """Of the training, in the metrics file."""
    model_dir: str
    """For tokenizer and chat template."""
    prompts: PromptConfig
    metrics_path: str
    best_dir: str
    """Path or address at which the best judge is kept."""
    max_tokens: int
    temperature: float
    best_by: str
    """Name of the figure that the best one has the highest of."""
    patience: int | None
    """Evaluations without a new best after which training should stop."""
    own_engines: bool
    """The pool is nobody else's: load each judge into it."""
    items_too_long: int = 0
    """Items of ProcessBench that were left out (`fitting_items`)."""
    load_timeout_s: float = 600.0
    trust_remote_code: bool = False


@dataclass(frozen=True)
class EvaluationStatus:
    """What has become of one version."""

    known: bool
    """It has been evaluated."""
    stop: bool
    """Training should end here."""


def fitting_items(
    prompts: PromptFormat, items: Sequence[StepItem], context_length: int
) -> list[StepItem]:
    """The items that engines of this context take every step of, as the stage `evaluate` asks them.

    It ends at any other one, and training should not.
    """

    def longest(item: StepItem) -> int:
        steps = enumerate(item.steps)
        return max(len(prompts.judge_ids(item.problem, item.steps[:i], s)) for i, s in steps)

    return [item for item in items if longest(item) < context_length]


class OneVersion:
    """A generator that answers with samples of one weight version, or not at all."""

    def __init__(self, pool: PoolClient, version: int) -> None:
        self._pool = pool
        self._version = version

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        samples = await self._pool.generate(prompt_ids, sampling, affinity)
        other = {s.weight_version for s in samples} - {self._version}
        if other:
            raise RuntimeError(
                f"the evaluation of weight version {self._version} was answered with version "
                f"{', '.join(map(str, sorted(other)))}: new weights came before it was done"
            )
        return samples


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Evaluator:
    """Holds no state that a restart would lose: what is known stands in the files."""

    def __init__(
        self,
        options: EvaluatorOptions,
        pool: Pinned[PoolClient],
        collector: Pinned[Any],
        items: Pinned[list[StepItem]],
    ) -> None:
        """``items``: of ProcessBench; none leaves that score out."""
        self._options = options
        self._items = items.get()
        self._pool = pool.get()
        self._collector = collector.get()
        self._format = PromptFormat.from_model_dir(
            options.model_dir, options.prompts, options.trust_remote_code
        )
        self._turn = asyncio.Lock()

    async def status(self, version: int) -> EvaluationStatus:
        """What is known of a version that training goes on from."""
        return self._status(version, self._versions())

    async def evaluate(self, version: int, candidate: str) -> EvaluationStatus:
        """Score the judge after ``version`` steps, whose weights also lie at ``candidate``.

        The candidate becomes the best judge or goes away. Raises RuntimeError when the engines
        change their weights before it is done.
        """
        async with self._turn:
            figures = read_evaluation(candidate)
            if figures is None and is_model(candidate):
                figures = await self._score(version, candidate)
                write_model_file(candidate, EVALUATION_FILE, json.dumps(figures))
            best = self._options.best_dir
            # Without the candidate this is a call that Ray repeats after the one before had moved
            # it: what remains is to see that its line was written.
            figures = figures or read_evaluation(best) or {}
            keep_if_best(candidate, best, self._options.best_by)
            versions = self._versions()
            if figures.get("version") == version:
                status = self._status(version, [*versions, version])
                line = {"step": version - 1, **figures, "stop": status.stop}
                append_metrics(self._options.metrics_path, EVALUATION, self._options.name, line)
                return status
            return self._status(version, versions)

    def _versions(self) -> list[int]:
        lines = read_metrics(self._options.metrics_path, EVALUATION, self._options.name)
        return [int(line["version"]) for line in lines]

    def _status(self, version: int, versions: Sequence[int]) -> EvaluationStatus:
        best = best_of(self._options.best_dir, self._options.best_by)
        patience = self._options.patience
        since = evaluations_since(best, version, versions)
        return EvaluationStatus(version in versions, patience is not None and since >= patience)

    async def _score(self, version: int, candidate: str) -> dict[str, float]:
        began = time.monotonic()
        if self._options.own_engines:
            weights = await asyncio.to_thread(_stored_weights, candidate)
            await self._pool.update_weights(weights, version, self._options.load_timeout_s)
        generator = OneVersion(self._pool, version)
        prompts = await self._collector.heldout_prompts.remote()
        heldout, items = await asyncio.gather(
            self._heldout(generator, prompts), self._processbench(generator)
        )
        return {
            "version": version,
            **heldout,
            **items,
            "seconds_evaluate": time.monotonic() - began,
        }

    async def _heldout(
        self, generator: OneVersion, prompts: Sequence[JudgePrompt]
    ) -> dict[str, float]:
        """Verdict accuracy per class on held-out labels, one sample each."""
        judge = self._judge(generator)
        verdicts = await asyncio.gather(
            *(judge.judge(p.question, p.history, p.chunk) for p in prompts)
        )
        if not prompts:
            return {}
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for prompt, verdict in zip(prompts, verdicts, strict=True):
            hits[prompt.label].append(verdict.verdict is prompt.label)
        figures = {
            f"heldout_{name}": float(np.mean(hits[label])) if hits[label] else float("nan")
            for label, name in ((True, "positive"), (False, "negative"))
        }
        figures["heldout_balanced"] = sum(figures.values()) / 2
        return figures | {"heldout_prompts": float(len(prompts))}

    async def _processbench(self, generator: OneVersion) -> dict[str, float]:
        """The official score, one sample a step."""
        items = self._items
        if not items:
            return {}
        rows = await judge_items(self._judge(generator), self._options.name, items)
        verdicts: dict[str, list[bool | None]] = {item.id: [] for item in items}
        for row in rows:
            verdicts[row.item_id].append(row.verdict)
        score = score_official(
            [first_negative(verdicts[item.id]) for item in items], [item.label for item in items]
        )
        figures = {
            "processbench_f1": score.f1,
            "processbench_error_accuracy": score.error_accuracy,
            "processbench_correct_accuracy": score.correct_accuracy,
            "processbench_items": float(len(items)),
            "processbench_too_long": float(self._options.items_too_long),
        }
        return {name: value for name, value in figures.items() if value is not None}

    def _judge(self, generator: OneVersion) -> GenerativeJudge:
        options = self._options
        sampling = Sampling(options.max_tokens, temperature=options.temperature)
        return GenerativeJudge(generator, self._format, sampling)


def _stored_weights(candidate: str) -> list[Any]:
    """References to the weights, or to the adapter that they were merged with: the candidate has
    moved or gone when an engine that restarts needs them."""
    folder = model_folder(candidate)
    files = sorted((adapter_of(folder) or folder).glob("*.safetensors"))
    weights = [ray.put(file.read_bytes()) for file in files]
    if object_address(candidate):
        shutil.rmtree(folder)  # a copy, which nobody else asks for
    return weights
