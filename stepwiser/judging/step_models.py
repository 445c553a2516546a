"""Public step scorers as PyTorch models: a published folder in, a score of every step out.

No code of a model's folder is run. Heads that transformers has no class for are made here from the
names that their weights have in the folder:

| form | weights besides those of the language model |
|---|---|
| token_classification | as `AutoModelForTokenClassification` saves them; one label or two |
| qwen_prm | `score.0.weight`, `score.0.bias`, `score.2.weight`, `score.2.bias`: two labels |
| math_shepherd, rlhflow | none: the probability of `+` against `-` |
| skywork | `v_head.summary.weight`, `v_head.summary.bias`: one number |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwiser.errors import UserError
from stepwiser.judging.step_prompts import MARKS, ScoredText, ScorerForm, StepPrompts
from stepwiser.prompting.hub.folders import model_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS: dict[ScorerForm, tuple[str, ...]] = {
    "qwen_prm": ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"),
    "skywork": ("v_head.summary.weight", "v_head.summary.bias"),
}
POSITIVE_LABELS = {"+", "good", "positive", "correct", "right", "true", "yes"}

Solution = tuple[str, Sequence[str]]
"""A problem and the steps of its solution."""


@dataclass(frozen=True)
class ScorerOptions:
    """Which scorer, and how it computes."""

    form: ScorerForm
    model: str
    """A folder that the machine can read, or a name on the Hub (`org/name@commit`)."""
    mark: str | None = None
    """What closes a step, where the model was trained with another mark than its form's."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """``auto``: what the checkpoint says."""
    batch_tokens: int = 16_384
    """Most tokens of a forward pass, padding included; a longer solution goes alone."""
    use_gpu: bool = False
    allow_pickled_weights: bool = False
    """Load weights that are no safetensors."""


@dataclass(frozen=True)
class StepScores:
    """The scores of a solution's steps."""

    scores: list[float | None]
    """Belief in Positive, 0 to 1; None for what lies beyond the model's context."""
    tokens: list[int]
    """Tokens that were read for each, those before the first one's among its own."""


class StepScorer:
    """A loaded scorer: one forward pass for all steps of a solution."""

    def __init__(self, options: ScorerOptions) -> None:
        """Load it. Raises UserError where the folder is not of the form."""
        import torch
        from transformers import AutoTokenizer

        self.options = options
        folder = model_folder(options.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"model {options.model}: its tokenizer cannot be loaded: {error}"
            ) from error
        mark = MARKS[options.form] if options.mark is None else options.mark
        self.prompts = StepPrompts(options.form, tokenizer, mark)
        self._device = torch.device("cuda" if options.use_gpu else "cpu")
        self._model, self._head = _load(options, folder)
        self._model.to(self._device)
        self._head.to(self._device)
        config = self._model.config
        self._positive = _positive_label(config)
        self._limit = int(getattr(config, "max_position_embeddings", None) or 2**30)
        self._padding = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Scores of every step of each solution, in their order."""
        whole = [self.prompts.render(problem, steps) for problem, steps in solutions]
        texts = [text.fitting(self._limit) for text in whole]
        found: dict[int, list[float]] = {}
        for batch in batches([len(text.ids) for text in texts], self.options.batch_tokens):
            rows = self._forward([texts[i] for i in batch])
            found |= dict(zip(batch, rows, strict=True))
        return [
            StepScores(
                [*found[i], *[None] * (len(text.ends) - len(found[i]))],
                [end - start for start, end in zip([-1, *text.ends], text.ends, strict=False)],
            )
            for i, text in enumerate(whole)
        ]

    def _forward(self, texts: Sequence[ScoredText]) -> list[list[float]]:
        """Scores of one batch, padded on the right: with causal attention nothing sees it."""
        import torch

        longest = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), longest), self._padding, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            seen[row, : len(text.ids)] = 1
        rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.ends])
        ends = torch.tensor([end for text in texts for end in text.ends])
        if not len(ends):
            return [[] for _ in texts]
        with torch.inference_mode():
            scores = self._scores(*(t.to(self._device) for t in (ids, seen, rows, ends))).tolist()
        taken = iter(scores)
        return [[float(next(taken)) for _ in text.ends] for text in texts]

    def _scores(self, ids: Tensor, seen: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Scores at positions ``ends`` of ``rows``: [positions]."""
        import torch

        form = self.options.form
        if form in ("math_shepherd", "rlhflow"):
            with _only_at(self._model.get_output_embeddings(), rows, ends):
                logits = self._model(input_ids=ids, attention_mask=seen, use_cache=False).logits[0]
            pair = logits[:, list(self.prompts.answers)].float()
            return pair.softmax(-1)[:, 0]
        output = self._model(input_ids=ids, attention_mask=seen, use_cache=False)
        if form == "token_classification":
            logits = output.logits[rows, ends]
        else:
            hidden = output.last_hidden_state[rows, ends]
            logits = self._head(hidden.float())
        logits = logits.float()
        if logits.shape[-1] == 1:
            return torch.sigmoid(logits[:, 0])
        return logits.softmax(-1)[:, self._positive]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``budget`` tokens with padding, like lengths together."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def _only_at(head: nn.Module, rows: Tensor, ends: Tensor) -> Iterator[None]:
    """Have a language model's last layer see these positions only, as one row.

    The logits of all positions would be the largest tensor by far. What a model does to its logits
    afterwards still happens.
    """
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, ends][None],))
    try:
        yield
    finally:
        handle.remove()


# --- loading --------------------------------------------------------------------------------------


def _load(options: ScorerOptions, folder: Path) -> tuple[Any, nn.Module]:
    """The model, and the head that transformers does not know of; empty where it knows it."""
    import torch
    from torch import nn
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

    classes = {
        "token_classification": AutoModelForTokenClassification,
        "math_shepherd": AutoModelForCausalLM,
        "rlhflow": AutoModelForCausalLM,
    }
    kind = classes.get(options.form, AutoModel)
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        model, said = kind.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if options.allow_pickled_weights else True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {options.model} cannot be loaded: {error}") from error
    if missing := sorted(said["missing_keys"]):
        raise UserError(
            f"model {options.model} has no weights {', '.join(missing[:4])}: it is not of the form "
            f"{options.form}, or not trained as one"
        )
    labels = int(getattr(model.config, "num_labels", 2))
    if options.form == "token_classification" and labels > 2:
        raise UserError(
            f"model {options.model} has {labels} labels: the form token_classification has one "
            "(a score) or two (wrong, right)"
        )
    model.eval()
    head = _made_head(options, folder) if options.form in HEADS else nn.Sequential()
    return model, head.eval()


def _made_head(options: ScorerOptions, folder: Path) -> nn.Module:
    from torch import nn

    weights = {name: tensor.float() for name, tensor in _read_head(options, folder).items()}
    layers: list[nn.Module] = []
    for name in HEADS[options.form][::2]:
        weight, bias = weights[name], weights[name.removesuffix("weight") + "bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _read_head(options: ScorerOptions, folder: Path) -> dict[str, Tensor]:
    """The head's weights by name. Raises UserError, naming those that are not there."""
    import torch
    from safetensors import safe_open

    names = set(HEADS[options.form])
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in names & set(tensors.keys()):
                found[name] = tensors.get_tensor(name)
    if not found and options.allow_pickled_weights:
        for file in sorted(folder.glob("*.bin")):
            pickled = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            found |= {name: pickled[name] for name in names & pickled.keys()}
    if missing := sorted(names - found.keys()):
        raise UserError(
            f"model {options.model} has no weights {', '.join(missing)}: it is not of the form "
            f"{options.form}"
        )
    return found


def _positive_label(config: Any) -> int:
    """Which of two labels says that a step is right: by its name, else the second."""
    names = getattr(config, "id2label", None) or {}
    named = [int(i) for i, name in names.items() if str(name).strip().lower() in POSITIVE_LABELS]
    return named[0] if len(names) == 2 and len(named) == 1 else 1
