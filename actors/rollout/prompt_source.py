"""Where the collector gets the prompts of a step: a finished annotation, or one that goes on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from stepwiser.data.records import JudgePrompt, group_by
from stepwiser.errors import UserError
from stepwiser.run.read_log import PromptRead, PromptReadLog, count_reads
from stepwiser.training.prompt_buffer import PromptBuffer, Reading


class PromptSource(Protocol):
    """The prompts of a step."""

    async def sample(self, step: int, number: int, count: int | None = None) -> list[JudgePrompt]:
        """The same ones for the same step and number, where they are balanced Positive ones first.

        ``number`` counts the further ones that a step may ask for, ``count`` says how many of them
        it needs at most (else as many as a step has).
        """
        ...


class FinishedPrompts:
    """All prompts of a finished annotation, in shuffled epochs.

    Half of a step is of either class, unless ``balanced`` is false: then a step is a random part
    of all, whatever their classes.
    """

    def __init__(
        self, prompts: Sequence[JudgePrompt], per_step: int, seed: int, balanced: bool = True
    ) -> None:
        self._all = list(prompts)
        self._positives = [p for p in prompts if p.label]
        self._negatives = [p for p in prompts if not p.label]
        self._per_step = per_step
        self._seed = seed
        self._balanced = balanced
        if not self._positives or not self._negatives:
            raise UserError(
                f"{len(self._positives)} positive and {len(self._negatives)} negative prompts: "
                "training needs both; annotate more problems or choose another label rule"
            )

    async def sample(self, step: int, number: int, count: int | None = None) -> list[JudgePrompt]:
        """See `PromptSource`."""
        if not self._balanced:
            size = len(self._all)
            order = f"{self._seed}/all"
            return [self._all[i] for i in _next(size, self._per_step, step, order, number)[:count]]
        sizes = len(self._positives), len(self._negatives)
        positive, negative = prompts_of_step(*sizes, self._per_step, step, self._seed, number)
        if count is not None:
            positive, negative = positive[: count // 2], negative[: count - count // 2]
        return [self._positives[i] for i in positive] + [self._negatives[i] for i in negative]


class FinishedSolutions:
    """Whole solutions, all steps of each, as many right ones as wrong ones, in shuffled epochs."""

    def __init__(self, prompts: Sequence[JudgePrompt], per_step: int, seed: int) -> None:
        solutions = group_by(prompts, "trajectory_id").values()
        self._right = [steps for steps in solutions if steps[0].label]
        self._wrong = [steps for steps in solutions if not steps[0].label]
        if not self._right or not self._wrong:
            raise UserError(
                f"{len(self._right)} right and {len(self._wrong)} wrong solutions: "
                "train.reward=outcome needs both; annotate more problems"
            )
        # Solutions differ in length: a step has about `per_step` prompts.
        self._of_a_prompt = len(solutions) / len(prompts)
        self._per_step = self._number(per_step)
        self._seed = seed

    def _number(self, prompts: int) -> int:
        """Solutions that have about so many steps; of both classes one at least."""
        return max(2, round(prompts * self._of_a_prompt))

    async def sample(self, step: int, number: int, count: int | None = None) -> list[JudgePrompt]:
        """See `PromptSource`; a solution comes whole, so there are only about ``count``.

        One that ends an epoch and begins the next may come twice in a step.
        """
        sizes = len(self._right), len(self._wrong)
        right, wrong = prompts_of_step(*sizes, self._per_step, step, self._seed, number)
        if count is not None:
            few = self._number(count)
            right, wrong = right[: few // 2], wrong[: few - few // 2]
        chosen = [self._right[i] for i in right] + [self._wrong[i] for i in wrong]
        copies: Counter[str] = Counter()
        prompts = []
        for steps in chosen:
            name = steps[0].trajectory_id
            copies[name] += 1
            # Each copy is judged for itself: by one name they would be taken for one judgement.
            own = name if copies[name] == 1 else f"{name}#{copies[name]}"
            prompts += [replace(prompt, trajectory_id=own) for prompt in steps]
        return prompts


def prompts_of_step(
    positives: int, negatives: int, count: int, step: int, seed: int, sampling_round: int = 0
) -> tuple[list[int], list[int]]:
    """Indices of the positive and negative prompts of a step, half each.

    Each class is read in shuffled epochs: nothing comes twice before everything came once. Further
    rounds of a step (`sampling_round` > 0) come from a shuffle of their own.
    """
    halves = (count // 2, count - count // 2)
    chosen = []
    for size, half, salt in ((positives, halves[0], "+"), (negatives, halves[1], "-")):
        chosen.append(_next(size, half, step, f"{seed}/{salt}", sampling_round))
    return chosen[0], chosen[1]


def _next(size: int, count: int, step: int, order: str, sampling_round: int) -> list[int]:
    """What the step reads of so many things, each read once in every epoch."""
    indices = []
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, size)
        indices.append(_shuffled(size, f"{order}/{epoch}/{sampling_round}")[offset])
    return indices


@lru_cache(maxsize=8)
def _shuffled(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


@dataclass(frozen=True)
class LiveOptions:
    """How prompts of a live annotation are read."""

    reading: Reading
    run: str
    """Path or address of the run directory, whose `read_log.READ_LOG` has a line for every round of
    sampling."""
    remembered: int
    """Steps that may be asked for again, by a learner that restarts from its last checkpoint."""


class LivePrompts:
    """Prompts as they come from an annotation that is under way.

    What a step reads hangs on what was there, so it is written down before it is given out: a
    restarted run reads the same for the steps that it does again.
    """

    def __init__(self, options: LiveOptions, seed: int) -> None:
        self._options = options
        self._buffer = PromptBuffer(options.reading, seed)
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._log = PromptReadLog(options.run)
        sampling_rounds = self._log.read()
        self._reads = count_reads(sampling_rounds)
        steps = 1 + max((sample.step for sample in sampling_rounds), default=-1)
        self._buffer.skip(steps)
        oldest = steps - options.remembered
        self._sampled = {(d.step, d.number): d.prompts for d in sampling_rounds if d.step >= oldest}
        self._known: dict[str, JudgePrompt] = {}
        self._awaited = {prompt for prompts in self._sampled.values() for prompt in prompts}

    def offer(self, prompts: Sequence[JudgePrompt]) -> None:
        """Take in the labelled prompts of a unit."""
        self._buffer.offer(prompts, self._reads)
        self._known |= {p.prompt_id: p for p in prompts if p.prompt_id in self._awaited}
        self._wake()

    def close(self) -> None:
        """All problems are annotated."""
        self._buffer.close()
        self._wake()

    def fail(self, reason: str) -> None:
        """Annotation has ended with an error; whoever waits for prompts is told."""
        self._failure = reason
        self._wake()

    def wanted(self) -> int:
        """Prompts that annotation should make now."""
        return self._buffer.wanted()

    @property
    def unread(self) -> dict[bool, int]:
        return self._buffer.unread

    async def sample(self, step: int, number: int, count: int | None = None) -> list[JudgePrompt]:
        """See `PromptSource`; waits for prompts. Raises UserError when annotation fails.

        What the log has is read again whole, whatever the ``count``.
        """
        key = (step, number)
        if key in self._sampled:
            while not all(prompt in self._known for prompt in self._sampled[key]):
                await self._change(f"the prompts that step {step} has read")
            return [self._known[prompt] for prompt in self._sampled[key]]
        # A step before those of the log, whose checkpoint is gone, has been counted already.
        extra = number > 0 or step < self._buffer.taken
        while (rows := self._buffer.take(extra, count)) is None:
            await self._change(f"the prompts of step {step}")
        self._log.add(PromptRead(step, number, tuple(row.prompt_id for row in rows)))
        self._remember(key, rows)
        return rows

    async def _change(self, what: str) -> None:
        if self._failure is not None:
            raise UserError(f"there is nobody to make {what}: {self._failure}")
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    def _remember(self, key: tuple[int, int], rows: Sequence[JudgePrompt]) -> None:
        self._sampled[key] = tuple(row.prompt_id for row in rows)
        self._known |= {row.prompt_id: row for row in rows}
        oldest = key[0] - self._options.remembered
        self._sampled = {k: prompts for k, prompts in self._sampled.items() if k[0] >= oldest}
        kept = {prompt for prompts in self._sampled.values() for prompt in prompts}
        self._known = {i: prompt for i, prompt in self._known.items() if i in kept}
