"""Judge prompts on their way from an annotation that goes on to the steps that read them. Pure.

Labels are far from balanced (four in five are Positive) and a step reads as many of each class.
Throwing the surplus away, as balancing a finished annotation does, would waste most rollouts. So
the larger class is read fresh, each prompt once, and the smaller one is read again, the least read
first, up to `Reading.most_reads`. Annotation is asked for more when the larger class has less than
`Reading.ahead` steps in stock or a step could not fill its half of the smaller one; never for more
than the steps that are left will read, nor for more at a time than doubles what there is.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError


@dataclass(frozen=True)
class Reading:
    """How steps read."""

    steps: int
    per_step: int
    """Prompts of a step, half of each class."""
    ahead: int
    """Steps' worth of prompts that nobody has read yet, in stock."""
    most_reads: int
    """Of one prompt, while others still come."""

    def half(self, label: bool, count: int | None = None) -> int:
        """Prompts of one class in a step, or of so many; of an odd number the larger part is
        Negative."""
        count = self.per_step if count is None else min(count, self.per_step)
        return count // 2 if label else count - count // 2

    def capacity(self, label: bool) -> int:
        """Prompts of a class that are held at most: enough that none is read more often."""
        return self.half(label) * self.ahead * self.most_reads


class _Shelf:
    """The prompts of one class."""

    def __init__(self, capacity: int, rng: random.Random) -> None:
        self.seen = 0
        self.unread: deque[JudgePrompt] = deque()
        self._capacity = capacity
        self._rng = rng
        # Reads so far, and a random number: a smaller class is read in shuffled epochs.
        self._read: list[tuple[int, float, JudgePrompt]] = []

    def put(self, prompt: JudgePrompt, reads: int = 0) -> None:
        self.seen += 1
        if reads:
            self._push(reads, prompt)
        else:
            self.unread.append(prompt)
        self._bound()

    def supply(self, most_reads: float) -> int:
        """Prompts that may be read now."""
        return len(self.unread) + sum(reads < most_reads for reads, _, _ in self._read)

    def take(self, count: int, most_reads: float) -> list[JudgePrompt]:
        """Up to so many different prompts, the least read first."""
        fresh = [(0, self.unread.popleft()) for _ in range(min(count, len(self.unread)))]
        again: list[tuple[int, JudgePrompt]] = []
        while len(fresh) + len(again) < count and self._read and self._read[0][0] < most_reads:
            reads, _, prompt = heapq.heappop(self._read)
            again.append((reads, prompt))
        for reads, prompt in (*fresh, *again):
            self._push(reads + 1, prompt)
        self._bound()
        return [prompt for _, prompt in (*fresh, *again)]

    def _push(self, reads: int, prompt: JudgePrompt) -> None:
        heapq.heappush(self._read, (reads, self._rng.random(), prompt))

    def _bound(self) -> None:
        surplus = len(self.unread) + len(self._read) - self._capacity
        # A tenth at a time, as the most read are found by sorting.
        if surplus > self._capacity // 10:
            keep = max(0, len(self._read) - surplus)
            self._read = heapq.nsmallest(keep, self._read)  # sorted, so still a heap
            while len(self.unread) > self._capacity:
                self.unread.popleft()


class PromptBuffer:
    """Balanced steps out of prompts that come in any order and any mixture."""

    def __init__(self, reading: Reading, seed: int) -> None:
        self._reading = reading
        self.taken = 0
        """Steps that have their prompts."""
        self._closed = False
        self._awaited = False
        """Somebody asked in vain."""
        self._shelves = {
            label: _Shelf(reading.capacity(label), random.Random(f"{seed}/{label}"))
            for label in (True, False)
        }

    def offer(self, prompts: Iterable[JudgePrompt], reads: Mapping[str, int] | None = None) -> None:
        """Take prompts in; ``reads`` says by `prompt_id` how often earlier steps have read them."""
        for prompt in prompts:
            self._shelves[prompt.label].put(prompt, (reads or {}).get(prompt.prompt_id, 0))

    def close(self) -> None:
        """Nothing more will come: what there is may be read as often as it takes."""
        self._closed = True

    def skip(self, steps: int) -> None:
        """So many steps have been read before."""
        self.taken = steps

    @property
    def unread(self) -> dict[bool, int]:
        """Prompts by class that nobody has read."""
        return {label: len(shelf.unread) for label, shelf in self._shelves.items()}

    def take(self, extra: bool = False, count: int | None = None) -> list[JudgePrompt] | None:
        """The prompts of the next step, Positive ones first; None: there are not enough yet.

        ``extra``: further ones for a step that was taken, ``count`` of them. Raises UserError when
        a class has no prompt and none will come.
        """
        limit = math.inf if self._closed else self._reading.most_reads
        rows = []
        for label, shelf in self._shelves.items():
            if self._closed and not shelf.supply(limit):
                raise UserError(self._one_sided())
            if not self._closed and shelf.supply(limit) < self._reading.half(label, count):
                self._awaited = True
                return None
        for label, shelf in self._shelves.items():
            part: list[JudgePrompt] = []
            while len(part) < (half := self._reading.half(label, count)):
                part += shelf.take(half - len(part), limit)  # again from the start if there are few
            rows += part
        self.taken += not extra
        self._awaited = False
        return rows

    def wanted(self) -> int:
        """Prompts, of both classes as they come, that annotation should make; 0: none for now."""
        left = max(self._reading.steps - self.taken, int(self._awaited))
        if self._closed or left == 0:
            return 0
        total = sum(shelf.seen for shelf in self._shelves.values())
        larger = max(self._shelves, key=lambda label: (self._shelves[label].seen, label))
        wanted = 0
        for label, shelf in self._shelves.items():
            half = self._reading.half(label)
            short = half - shelf.supply(self._reading.most_reads)
            if label is larger:
                short = max(short, half * min(self._reading.ahead, left) - len(shelf.unread))
            share = (shelf.seen + 1) / (total + 2)
            wanted = max(wanted, math.ceil(short / share))
        # A class of which little has been seen yet may look far rarer than it is, so annotation at
        # most doubles before its share is looked at again.
        return min(wanted, max(total, self._reading.per_step * self._reading.ahead))

    def _one_sided(self) -> str:
        positive, negative = (self._shelves[label].seen for label in (True, False))
        return (
            f"{positive} positive and {negative} negative prompts: training needs both; annotate "
            "more problems or choose another label rule"
        )
