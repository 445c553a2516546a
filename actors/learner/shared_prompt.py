"""Attention over flat tokens, with every prompt computed once for all of its responses.

The samples of one GRPO group share their prompt. Here a micro-batch is one flat row of tokens,
prompts first, then responses: linear layers see neither padding nor a prompt twice. A response
attends to its prompt's keys and to itself, so the result is that of every sequence alone. Only
attention puts tokens into padded rows, where no kernel takes them as they are (`packed_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from actors.learner.packed_attention import Packing, attend, choose
from stepwiser.errors import UserError

NAME = "shared_prompt"
"""What the attention is called among those of transformers."""


@dataclass(frozen=True)
class Layout:
    """Where G prompts of up to P tokens and S responses of up to R lie in a flat row of N."""

    position_ids: Tensor
    """[1, N] int64: a response goes on counting where its prompt ended."""
    prompts: Tensor
    """[G, P] int64: flat index of each prompt token; padding points at token 0."""
    responses: Tensor
    """[S, R] int64, likewise."""
    parents: Tensor
    """[S] int64: the prompt of each response."""
    visible: Tensor
    """[S, 1, R, P + R] bool: what each response token attends to."""
    places: Tensor
    """[N] int64: where each flat token lies in the padded prompts and, behind them, responses."""
    packing: Packing
    """The same without padding."""

    @classmethod
    def of(
        cls,
        prompt_lengths: Sequence[int],
        response_lengths: Sequence[int] = (),
        parents: Sequence[int] = (),
    ) -> Layout:
        """Lay the prompts out one after the other, then the responses."""
        lengths = torch.tensor([*prompt_lengths, *response_lengths])
        starts = lengths.cumsum(0) - lengths
        count = len(prompt_lengths)
        prompts, prompt_real = _rows(starts[:count], lengths[:count])
        responses, response_real = _rows(starts[count:], lengths[count:])
        parent = torch.tensor(parents, dtype=torch.int64)
        width = responses.shape[1]
        causal = torch.ones((width, width), dtype=torch.bool).tril()
        visible = torch.cat(
            [
                prompt_real[parent][:, None, None].expand(-1, -1, width, -1),
                causal.expand(len(parent), 1, -1, -1),
            ],
            dim=3,
        )
        before = torch.cat([torch.zeros(count, dtype=torch.int64), lengths[:count][parent]])
        within = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        real = torch.cat([prompt_real.reshape(-1), response_real.reshape(-1)])
        return cls(
            position_ids=(within + before.repeat_interleave(lengths))[None],
            prompts=prompts,
            responses=responses,
            parents=parent,
            visible=visible,
            places=real.nonzero()[:, 0],
            packing=Packing.of(prompt_lengths, response_lengths, parents),
        )

    def to(self, device: torch.device) -> Layout:
        return Layout(**{name: value.to(device) for name, value in vars(self).items()})


def _rows(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices [rows, longest] and which of them are real."""
    columns = torch.arange(int(lengths.max()) if len(lengths) else 0)
    real = columns < lengths[:, None]
    return torch.where(real, starts[:, None] + columns, 0), real


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout,
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: [1, H, N, D] each → [1, N, H, D].

    Raises UserError for models whose attention does more than attend to everything before.
    """
    _refuse_specials(module, layout, options)
    # [N, H, D]: as the projections wrote them, so that gathering moves whole rows.
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    _, kernel = choose(query.device.type, query.dtype)
    if kernel is not None:
        return attend(kernel, queries, keys, values, layout.packing, scaling)[None], None
    repeats = query.shape[1] // key.shape[1]
    prompt_keys, prompt_values = keys[layout.prompts], values[layout.prompts]
    parts = [
        scaled_dot_product_attention(
            queries[layout.prompts].transpose(1, 2),
            _heads(prompt_keys, repeats),
            _heads(prompt_values, repeats),
            is_causal=True,
            scale=scaling,
        )
    ]
    if len(layout.responses):
        parts.append(
            scaled_dot_product_attention(
                queries[layout.responses].transpose(1, 2),
                _heads(_behind(prompt_keys, keys, layout), repeats),
                _heads(_behind(prompt_values, values, layout), repeats),
                attn_mask=layout.visible,
                scale=scaling,
            )
        )
    padded = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
    return padded[layout.places][None], None


def _behind(prompts: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
    """[S, P + R, H, D]: each response behind its prompt."""
    return torch.cat([prompts[layout.parents], tokens[layout.responses]], dim=1)


def _heads(rows: Tensor, repeats: int) -> Tensor:
    """[rows, T, H, D] → [rows, H * repeats, T, D] (grouped-query attention)."""
    if repeats > 1:
        rows = rows.repeat_interleave(repeats, dim=2)
    return rows.transpose(1, 2)


def _refuse_specials(module: Any, layout: Layout, options: dict[str, Any]) -> None:
    window = options.get("sliding_window")
    longest = int(layout.prompts.shape[1] + layout.responses.shape[1])
    if window is not None and longest > window:
        raise UserError(
            f"{type(module).__name__} attends to the last {window} tokens only and a sequence has "
            f"up to {longest}: training such models is not supported; shorten the prompts"
        )
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} uses {name} in its attention, which training does not "
                "support: choose a model of the Llama, Qwen, Mistral or Phi families"
            )


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
