"""Tensors of one micro-batch: flat tokens in, log-probs of chosen positions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.learner.shared_prompt import Layout
from stepwiser.training.experience import ExperienceBatch, TokenExamples
from stepwiser.training.grpo import entropy, token_logprobs
from stepwiser.training.vocabulary import BLOCK_NUMBERS, vocabulary_logprobs


@dataclass(frozen=True)
class FlatTokens:
    """N tokens of several sequences and the M positions whose next token matters."""

    input_ids: Tensor
    """[1, N] int64."""
    layout: Layout
    positions: Tensor
    """[M] int64 into the N tokens: where logits are needed."""
    targets: Tensor
    """[M] int64: the token each position should predict."""

    def to(self, device: torch.device) -> FlatTokens:
        return FlatTokens(
            self.input_ids.to(device),
            self.layout.to(device),
            self.positions.to(device),
            self.targets.to(device),
        )


class _OutputLayer(nn.Module):
    """A model's output layer without bias, that answers log-probs where it was told of what."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.asked: tuple[Tensor, float] | None = None
        """Targets and temperature."""
        self.answered: tuple[Tensor, Tensor] | None = None
        """Log-probs and entropies."""

    def forward(self, hidden: Tensor) -> Tensor:
        if self.asked is None:
            return nn.functional.linear(hidden, self.weight)
        self.answered = vocabulary_logprobs(hidden, self.weight, *self.asked)
        return self.answered[0]


class ChosenLogprobs(nn.Module):
    """A causal language model that gives log-probs [M] of chosen tokens, and entropies [M].

    The positions are chosen just before the output layer, which takes the vocabulary in blocks: no
    memory goes into logits of prompt tokens, nor into those of all words at once. A model with more
    behind its output layer (a scale, a cap) gets its own code around whole logits of the chosen
    positions.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._positions: Tensor | None = None
        head = model.get_output_embeddings()
        # Not the others: an adapter may be in it.
        self._in_blocks = type(head) is nn.Linear and head.bias is None
        if self._in_blocks:
            head = _OutputLayer(head.weight)
            model.set_output_embeddings(head)
        head.register_forward_pre_hook(self._choose)

    def _choose(self, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (hidden,) = inputs
        return (hidden.reshape(-1, hidden.shape[-1])[self._positions],)

    def forward(self, tokens: FlatTokens, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The entropies have no gradient."""
        if self._in_blocks:
            head = self.model.get_output_embeddings()
            head.asked = tokens.targets, temperature
            try:
                given = self._run(tokens)
                logprobs, entropies = head.answered
            finally:
                head.asked = head.answered = None
            if torch.equal(given, logprobs):
                return given, entropies
            self._in_blocks = False  # the model has changed what it took for logits
        logits = self._run(tokens)
        rows = max(1, BLOCK_NUMBERS["cpu"] // logits.shape[1])
        parts = [entropy(part, temperature) for part in logits.detach().split(rows)]
        return token_logprobs(logits, tokens.targets, temperature), torch.cat(parts)

    def _run(self, tokens: FlatTokens) -> Tensor:
        self._positions = tokens.positions
        try:
            return self.model(
                input_ids=tokens.input_ids,
                position_ids=tokens.layout.position_ids,
                layout=tokens.layout,
                use_cache=False,
            ).logits
        finally:
            self._positions = None


@dataclass(frozen=True)
class ResponseBatch:
    """One GRPO micro-batch of S responses; R is the longest."""

    tokens: FlatTokens
    """``positions`` runs over the responses, one after the other."""
    mask: Tensor
    """[S, R] bool: real response tokens; all False in a micro-batch that only keeps step."""
    advantages: Tensor
    """[S] float32."""
    engine_logprobs: Tensor | None
    """[S, R] float32, 0 where masked."""
    weight_versions: Tensor
    """[S] int64."""

    def spread(self, values: Tensor) -> Tensor:
        """[M] values of the chosen positions → [S, R], 0 where masked; keeps the gradient."""
        if not self.mask.any():
            return values.sum() * 0 + values.new_zeros(self.mask.shape)
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)

    def to(self, device: torch.device) -> ResponseBatch:
        engine = self.engine_logprobs
        return ResponseBatch(
            self.tokens.to(device),
            self.mask.to(device),
            self.advantages.to(device),
            engine if engine is None else engine.to(device),
            self.weight_versions.to(device),
        )


def keep_step_tokens() -> FlatTokens:
    """The smallest forward pass there is, for a rank that has no sequence left."""
    zero = torch.zeros(1, dtype=torch.int64)
    return FlatTokens(zero[None], Layout.of([1]), zero, zero)


def response_batch(batch: ExperienceBatch, units: Sequence[Sequence[int]]) -> ResponseBatch:
    """Tensors of some units: each is a list of sequences that share one prompt.

    No unit at all gives a masked micro-batch.
    """
    if not units:
        engine = None if batch.engine_logprobs is None else torch.zeros((1, 1))
        mask = torch.zeros((1, 1), dtype=torch.bool)
        zero = torch.zeros(1)
        return ResponseBatch(keep_step_tokens(), mask, zero, engine, zero.long())
    indices = [index for unit in units for index in unit]
    parents = [parent for parent, unit in enumerate(units) for _ in unit]
    prompts = [batch.prompt(unit[0]) for unit in units]
    responses = [batch.response(index) for index in indices]
    lengths = [len(response) for response in responses]
    ends = np.cumsum([len(prompt) for prompt in prompts])
    starts = ends[-1] + np.cumsum(lengths) - lengths
    # A response's first token is predicted by the last one of its prompt, the others by the one
    # before them.
    positions = np.concatenate(
        [
            np.r_[ends[parent] - 1, start : start + length - 1]
            for parent, start, length in zip(parents, starts, lengths, strict=True)
        ]
    )
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    engine = None
    if batch.engine_logprobs is not None:
        engine = np.zeros(mask.shape, dtype=np.float32)
        engine[mask] = np.concatenate([batch.logprobs(index) for index in indices])
    tokens = FlatTokens(
        _int64([*prompts, *responses])[None],
        Layout.of([len(prompt) for prompt in prompts], lengths, parents),
        torch.from_numpy(positions.astype(np.int64)),
        _int64(responses),
    )
    return ResponseBatch(
        tokens,
        torch.from_numpy(mask),
        torch.from_numpy(batch.advantages[indices]),
        None if engine is None else torch.from_numpy(engine),
        torch.from_numpy(batch.weight_versions[indices].astype(np.int64)),
    )


def example_tokens(examples: TokenExamples, indices: Sequence[int], shared: int = 0) -> FlatTokens:
    """Tensors of the chosen examples; ``positions`` are those whose next token is learned.

    ``shared``: as many leading tokens all of them have in common and none learns (`packing`); they
    are computed once.
    """
    chosen = [examples.example(index) for index in indices]
    own = [ids[shared:] for ids, _ in chosen]
    lengths = [len(ids) for ids in own]
    starts = shared + np.cumsum(lengths) - lengths
    positions, targets = [], []
    for (ids, mask), start in zip(chosen, starts, strict=True):
        learned = 1 + np.flatnonzero(mask[1:])
        # Predicted by the token before it: of the first behind the shared ones that is their last.
        before = start + learned - shared - 1
        positions.append(np.where(learned == shared, shared - 1, before) if shared else before)
        targets.append(ids[learned])
    layout = Layout.of([shared], lengths, [0] * len(own)) if shared else Layout.of(lengths)
    return FlatTokens(
        _int64([chosen[0][0][:shared], *own])[None], layout, _int64(positions), _int64(targets)
    )


def _int64(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))
