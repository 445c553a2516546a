"""Token-budget micro-batches with the same count on every rank.

ZeRO-3 gathers parameters in every forward pass, so ranks that run different numbers of forwards
wait for each other for ever. Every plan made here therefore has equally many micro-batches on every
rank; a rank that runs out of sequences gets an empty one, which the learner turns into a masked
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwiser.errors import UserError
from stepwiser.training.experience import ExperienceBatch, TokenExamples

MicroBatch = tuple[int, ...]
"""Indices of the units that share one forward pass; empty = a masked pass."""


@dataclass(frozen=True)
class PromptUnit:
    """Sequences of one group that share a prompt, which is computed once for all of them."""

    sequences: tuple[int, ...]
    tokens: int
    """Of the prompt and of all the responses."""


def prompt_units(
    batch: ExperienceBatch, sequences: Sequence[int], max_tokens: int
) -> list[PromptUnit]:
    """Join sequences that share group and prompt, as far as ``max_tokens`` allows.

    A group that does not fit is cut into several units, each with the prompt of its own.
    """
    lengths = batch.response_lengths
    units: list[PromptUnit] = []
    newest: dict[tuple[int, bytes], int] = {}
    for index in sequences:
        prompt = batch.prompt(index)
        key = (int(batch.groups[index]), prompt.tobytes())
        place = newest.get(key)
        grown = 0 if place is None else units[place].tokens + int(lengths[index])
        if place is None or grown > max_tokens:
            newest[key] = len(units)
            units.append(PromptUnit((index,), len(prompt) + int(lengths[index])))
        else:
            units[place] = PromptUnit((*units[place].sequences, index), grown)
    return units


WORTH_SHARING = 0.25
"""Of all tokens: below it, attention to keys that lie elsewhere costs what is saved."""


def shared_prefix(examples: TokenExamples, indices: Sequence[int]) -> int:
    """How many leading tokens, none of them learned, all these examples have in common: the
    instructions and finished examples of a judge's prompt. 0 where too little would be saved."""
    chosen = [examples.example(index) for index in indices]
    if len(chosen) < 2:
        return 0
    # The first token is never learned: nothing predicts it.
    length = min(int(np.flatnonzero(mask[1:])[0]) + 1 for _, mask in chosen)
    first = chosen[0][0]
    for ids, _ in chosen[1:]:
        length = int((first[:length] == ids[:length]).cumprod().sum())
    saved = length * (len(chosen) - 1)
    return length if saved >= WORTH_SHARING * sum(len(ids) for ids, _ in chosen) else 0


def pack_micro_batches(
    tokens: Sequence[int], world_size: int, max_tokens: int, shared: int = 0
) -> list[list[MicroBatch]]:
    """Share units out over ranks and cut every share into micro-batches.

    tokens: of each unit; ``shared`` of them all units have in common, and a micro-batch once.
    Returns one list of micro-batches a rank, all lists equally long, every index exactly once, no
    micro-batch above ``max_tokens``. Units of like size travel together, so attention has little
    padding, and ranks carry like numbers of tokens.

    Raises UserError when one unit alone exceeds ``max_tokens``.
    """
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; at least one rank is needed")
    longest = max(tokens, default=0)
    if longest > max_tokens:
        raise UserError(
            f"a sequence of {longest} tokens does not fit into a micro-batch of {max_tokens} "
            "tokens; raise max_tokens_per_microbatch or lower the prompt and response limits"
        )
    if not tokens:
        return [[] for _ in range(world_size)]
    tokens, max_tokens = [count - shared for count in tokens], max_tokens - shared
    plans = [_cut(tokens, share, max_tokens) for share in _share(tokens, world_size)]
    count = max(len(plan) for plan in plans)
    return [_stretch(tokens, plan, count) for plan in plans]


def _share(tokens: Sequence[int], world_size: int) -> list[list[int]]:
    """Largest first, each to the rank that carries least so far."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += tokens[index]
    return shares


def _cut(tokens: Sequence[int], share: Sequence[int], max_tokens: int) -> list[MicroBatch]:
    """Cut a share, largest first, into micro-batches of about the same load."""
    total = sum(tokens[i] for i in share)
    count = max(1, -(-total // max_tokens))
    plan: list[MicroBatch] = []
    current: list[int] = []
    load = done = 0
    for index in share:
        # Close where the even share ends, so that the last micro-batch is no mere remainder.
        even = total * (len(plan) + 1) / count
        if current and (done + tokens[index] / 2 > even or load + tokens[index] > max_tokens):
            plan.append(tuple(current))
            current, load = [], 0
        current.append(index)
        load += tokens[index]
        done += tokens[index]
    if current:
        plan.append(tuple(current))
    return plan


def _stretch(tokens: Sequence[int], plan: list[MicroBatch], count: int) -> list[MicroBatch]:
    """Bring a plan to ``count`` micro-batches: split the largest, then add empty ones."""
    plan = list(plan)
    while len(plan) < count:
        largest = max(
            (i for i in range(len(plan)) if len(plan[i]) > 1),
            key=lambda i: sum(tokens[unit] for unit in plan[i]),
            default=None,
        )
        if largest is None:
            plan.append(())
            continue
        units = plan[largest]
        middle = (len(units) + 1) // 2
        plan[largest : largest + 1] = [units[:middle], units[middle:]]
    return plan


def split_groups(groups: Sequence[int], minibatches: int) -> list[list[int]]:
    """Cut a step's sequences into minibatches without tearing a group apart.

    groups: group index of each sequence (any order). Groups are dealt out in turn, so a batch that
    comes sorted by label still gives mixed minibatches. Never returns an empty minibatch: with
    fewer groups than ``minibatches`` there are as many minibatches as groups.
    """
    if minibatches < 1:
        raise UserError(f"minibatches is {minibatches}; at least one update a step is needed")
    seat = {group: seat for seat, group in enumerate(dict.fromkeys(groups))}
    count = min(minibatches, len(seat))
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, group in enumerate(groups):
        parts[seat[group] % count].append(index)
    return parts
