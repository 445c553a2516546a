"""Which step's experience may be sampled now, so that none is too old when it is trained on. Pure.

A step is trained by the weights of its own number: version v has v updates in it. Experience for
step t that is begun when the engines hold version v is at most t − v versions old when its turn
comes, since engines never go back; so t may begin as soon as t ≤ v + bound. With bound 0 that is
when its own weights are there: on-policy, engines and learner take turns. With bound k the engines
work up to k steps ahead of the optimizer.

Within the bound a step begins when half of the groups before it are answered: it fills the places
that the last, long answers leave empty, and not earlier, as newer weights may come meanwhile.
(NeMo-RL's admit / select / evict, by whole steps in place of single prompts.)
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Of a step that has been begun."""

    FILLING = "most of its groups are not answered yet"
    DRAINING = "its last groups are being answered"
    READY = "its batch is complete"


class StalenessGate:
    """Steps between their admission and the update that they were for.

    ``bound``: weight versions that experience may be old; ``steps``: how many are trained in all.
    """

    def __init__(self, bound: int, steps: int) -> None:
        self.bound = bound
        self._steps = steps
        self._phases: dict[int, Phase] = {}
        self.version: int | None = None
        """In the engines; None until the learner has published its first."""

    def publish(self, version: int) -> tuple[int, ...]:
        """The engines have these weights now; returns the steps that must be given up.

        Any version but the next says that the learner has gone back, or begins: what was sampled
        for the time after is of weights that no longer are.
        """
        follows = self.version is not None and version == self.version + 1
        self.version = version
        if not follows:
            evicted = tuple(self._phases)
            self._phases.clear()
            return evicted
        for step in [step for step in self._phases if step < version]:
            del self._phases[step]  # trained
        return ()

    def admit(self) -> int | None:
        """The step whose sampling begins now; None while there is none to begin.

        Each step once, in order. Ask again after every change.
        """
        if self.version is None or Phase.FILLING in self._phases.values():
            return None
        step = max(self._phases, default=self.version - 1) + 1
        if step > self.version + self.bound or step >= self._steps:
            return None
        self._phases[step] = Phase.FILLING
        return step

    def advance(self, step: int, phase: Phase) -> None:
        """A step that was admitted is so far; one that was given up is ignored."""
        if step in self._phases:
            self._phases[step] = phase


def sample_age(step: int, oldest: int, bound: int) -> int:
    """How old the oldest sample of a step is when it is trained on, in weight versions.

    Raises RuntimeError when it is older than the bound: no such batch may be trained on.
    """
    age = step - oldest
    if age > bound:
        raise RuntimeError(
            f"step {step} holds a sample of weight version {oldest}, {age} versions old, with "
            f"train.staleness={bound}: an engine answered with weights that it should not have had"
        )
    return age
