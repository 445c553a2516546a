"""Pre-train the tiny base model: ``python -m stepwiser.tasks.pretrain --out DIR --seed N``.

The model learns to solve problems in plain lines and to judge chunks three ways: by worked checks
(sloppy at temperature 1 by intent, see ``slip_rate``), by direct verdicts that are always right,
and by ``+`` or ``-`` after every chunk of a chat. The same arguments give the same weights on the
same machine and torch build. Every evaluation leaves a loadable checkpoint with its scores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from stepwiser.tasks.arithmetic import make_problem, solution
from stepwiser.tasks.pretrain_scores import evaluate
from stepwiser.tasks.transcripts import (
    glance_answer,
    recompute_answer,
    sample_judge_case,
    sample_turns,
    sloppy_solution,
)

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights. Batches are examples per step."""

    seed: int = 0
    steps: int = 2000
    policy_first: int = 0  # steps on solutions alone before the mix
    policy_batch: int = 24
    recompute_batch: int = 24  # half of them drills of one or two operations
    glance_batch: int = 16
    turns_batch: int = 4  # chats; only verdicts after the first chunk count
    slip_rate: float = 0.15  # share of worked checks with a slip
    solution_slip_rate: float = 0.0  # share of solutions with a slip
    read_slip_rate: float = 0.0  # share of solutions with a slip that is read but not trained
    target_pass: float = 0.58  # from this pass@1 on solutions are seen in 40 % of the steps
    styled_share: float = 0.667  # share of the worked checks whose style token is trained too
    init: str = ""  # checkpoint to go on from (weights only) instead of a fresh model
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    final_lr: float = 0.08  # share of the rates left at the last step
    head_dim: int = 32
    heads: int = 4
    kv_heads: int = 2
    eval_every: int = 250


class Muon:
    """Muon on the matrices and Adam on the rest, in fp32.

    ``torch.optim.Muon`` orthogonalises in bf16, which CPUs without bf16 units emulate, and one
    matrix at a time; here all matrices of one shape go through the iteration as one batch.
    """

    def __init__(self, model: LlamaForCausalLM, matrix_lr: float, other_lr: float) -> None:
        import torch

        shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        others = []
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                rows, columns = parameter.shape
                shapes.setdefault((rows, columns), []).append(parameter)
            else:
                others.append(parameter)
        self.groups = list(shapes.values())
        self.momenta = [torch.zeros(len(g), *g[0].shape) for g in self.groups]
        self.adam = torch.optim.Adam(others, lr=other_lr, betas=(0.9, 0.98))
        self.matrix_lr, self.other_lr = matrix_lr, other_lr

    def step(self, factor: float) -> None:
        """Apply the gradients with both rates times ``factor``, then clear them."""
        import torch

        with torch.no_grad():
            for group, momentum in zip(self.groups, self.momenta, strict=True):
                gradient = torch.stack([p.grad for p in group])
                momentum.lerp_(gradient, 0.05)
                update = _orthogonalise(gradient.lerp(momentum, 0.95))
                rows, columns = group[0].shape
                scale = self.matrix_lr * factor * max(1.0, rows / columns) ** 0.5
                for parameter, direction in zip(group, update, strict=True):
                    parameter.sub_(direction, alpha=scale)
                    parameter.grad = None
        self.adam.param_groups[0]["lr"] = self.other_lr * factor
        self.adam.step()
        self.adam.zero_grad()


def _orthogonalise(batch: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps that push all singular values of each [n, rows, columns] to ~1."""
    tall = batch.shape[1] > batch.shape[2]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """An fp32 Llama: ``recipe.init``, or a fresh one drawn with the recipe's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if recipe.init:
        return LlamaForCausalLM.from_pretrained(
            recipe.init, dtype=torch.float32, attn_implementation="eager"
        )
    from stepwiser.tasks.tokenizer import BOS, EOS, PAD, vocabulary

    ids = vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        attn_implementation="eager",  # faster than SDPA on CPU at these lengths
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                residual = "o_proj" in name or "down_proj" in name
                std = parameter.shape[1] ** -0.5 * ((2 * 4) ** -0.5 if residual else 1.0)
                # Embeddings of the usual 0.02 left the model without any ability after 1,500 steps.
                parameter.normal_(std=0.1 if "embed" in name else std)
    return model


@dataclass(frozen=True)
class Example:
    """Token ids and, for each, whether the model is trained to predict it."""

    ids: list[int]
    trained: list[bool]


class Feed:
    """Draws training examples and counts what was taught, per kind."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe = recipe
        self.rng = random.Random(f"pretrain-{recipe.seed}")
        self.inner = tokenizer.backend_tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.counts: Counter[str] = Counter()

    def _ids(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def _pair(self, prompt: str, answer: str, skip: int = 0) -> Example:
        """Prompt and answer, the loss on all of the answer but its first ``skip`` tokens."""
        head = [self.bos, *self._ids(prompt)]
        tail = [*self._ids(answer), self.eos]
        untrained = len(head) + skip
        return Example(
            head + tail, [False] * untrained + [True] * (len(head) + len(tail) - untrained)
        )

    def solutions(self, count: int) -> list[Example]:
        """Plain solutions of fresh problems, some with a slip.

        A slip may be read without being taught: what is taught then is to go on from the number on
        the page. A model that calculates past its own slip reaches right answers by wrong steps,
        and every label that is made of final answers calls those steps good.
        """
        found = []
        for _ in range(count):
            problem = make_problem(self.rng)
            rates = (self.recipe.solution_slip_rate, self.recipe.read_slip_rate)
            draw = self.rng.random() if any(rates) else 1.0
            taught, read = draw < rates[0], rates[0] <= draw < sum(rates)
            self.counts["solutions"] += 1
            self.counts["solutions_with_slip"] += taught
            self.counts["solutions_with_untrained_slip"] += read
            prompt = problem.question + "\n"
            if not (taught or read):
                found.append(self._pair(prompt, solution(problem)))
                continue
            before, slip, after = sloppy_solution(self.rng, problem, careless=taught)
            found.append(
                self._join([(prompt, False), (before, True), (slip, taught), (after, True)])
            )
        return found

    def _join(self, parts: list[tuple[str, bool]]) -> Example:
        """Texts one after the other, each trained or only read, then ``<eos>``."""
        ids, trained = [self.bos], [False]
        for text, learn in parts:
            part = self._ids(text)
            ids += part
            trained += [learn] * len(part)
        return Example([*ids, self.eos], [*trained, True])

    def judgements(self) -> list[Example]:
        """One step's judge examples of all three kinds."""
        recipe, rng = self.recipe, self.rng
        found = []
        for i in range(recipe.recompute_batch):
            drill = i < recipe.recompute_batch // 2
            case = sample_judge_case(rng, 1 if drill else 4, 2 if drill else 5)
            slip = rng if rng.random() < recipe.slip_rate else None
            answer, verdict = recompute_answer(case.problem, case.history, case.chunk, slip)
            self.counts["reasoned"] += 1
            self.counts["reasoned_with_slip"] += slip is not None
            self.counts["reasoned_verdict_wrong"] += verdict != case.right
            # Glances are fewer but their tokens weigh more (the loss is a mean over the tokens of
            # a batch of like lengths), so this share is what balances the styles.
            styled = (i % 12) / 12 < recipe.styled_share - 1e-3
            found.append(self._pair(case.prompt, answer, skip=0 if styled else 1))
        for i in range(recipe.glance_batch):
            drill = i < recipe.glance_batch // 2
            case = sample_judge_case(rng, 1 if drill else 4, 2 if drill else 5)
            self.counts["direct_glance"] += 1
            found.append(self._pair(case.prompt, glance_answer(case.right)))
        for _ in range(recipe.turns_batch):
            found.append(self._chat(sample_turns(rng)))
        return found

    def _chat(self, turns: list[tuple[str, str]]) -> Example:
        """A multi-turn judgement; its first verdict is read but not trained.

        After the first line nothing tells such a chat from a solution being written, so to teach
        the sign there would put signs into solutions.
        """
        ids, trained = [self.bos], [False]
        for i, (text, sign) in enumerate(turns):
            part = self._ids(text) + self._ids(sign)
            ids += part
            trained += [False] * (len(part) - 1) + [i > 0]
            self.counts["direct_turns" if i else "direct_turns_untrained"] += 1
        return Example(ids, trained)


def _loss(model: LlamaForCausalLM, examples: list[Example]) -> torch.Tensor:
    """Mean cross-entropy (nats) over the trained tokens of ``examples``, padded on the right."""
    import torch

    width = max(len(e.ids) for e in examples)
    ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in examples])
    labels = torch.full((len(examples), width), IGNORE)
    for row, example in enumerate(examples):
        here = torch.tensor(example.trained + [False] * (width - len(example.ids)))
        labels[row, here] = ids[row, here]
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    labels = labels[:, 1:]
    kept = labels != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), labels[kept])


def train(recipe: Recipe, out: pathlib.Path) -> dict:
    """Train until done or interrupted (SIGINT, SIGTERM); returns the last checkpoint's record.

    Checkpoints go to ``out/step_N`` with ``training.json`` inside; ``out/log.jsonl`` has a line
    for each.
    """
    from stepwiser.tasks.tokenizer import build_tokenizer

    stopped: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: stopped.append(number))
    model, tokenizer = build_model(recipe), build_tokenizer()
    feed, optimizer = Feed(recipe, tokenizer), Muon(model, recipe.matrix_lr, recipe.other_lr)
    keep = random.Random(f"keep-{recipe.seed}")
    earlier = None
    if recipe.init:
        earlier = json.loads((pathlib.Path(recipe.init) / "training.json").read_text())
        feed.counts.update(earlier["taught"])
    policy_share = 1.0 if recipe.target_pass > 0 else 0.4
    seconds, tokens, record = 0.0, 0, {}
    for step in range(1, recipe.steps + 1):
        began = time.process_time()
        mixed = step > recipe.policy_first
        batches = []
        if not mixed or keep.random() < policy_share:
            batches.append(feed.solutions(recipe.policy_batch))
        if mixed:
            judged = sorted(feed.judgements(), key=lambda e: len(e.ids))
            half = len(judged) // 2
            batches += [judged[:half], judged[half:]]
        losses = []
        for batch in batches:
            loss = _loss(model, batch)
            (0.5 * loss).backward()
            losses.append(loss.item())
            tokens += sum(len(e.ids) for e in batch)
        decay = 1 - (1 - recipe.final_lr) * step / recipe.steps
        optimizer.step(min(1.0, step / 50) * decay)
        seconds += time.process_time() - began
        if step % recipe.eval_every == 0 or step == recipe.steps or stopped:
            scores = evaluate(model, tokenizer, problems=96 if mixed else 48, judge=mixed)
            policy_share = 1.0 if scores["pass_at_1"] < recipe.target_pass else 0.4
            record = {
                "recipe": asdict(recipe),
                "step": step,
                "cpu_seconds": round(seconds, 1),
                "tokens": tokens,
                "losses": [round(x, 4) for x in losses],
                "taught": dict(feed.counts),  # in all stages
                "scores": scores,
                "stopped_by_signal": stopped[0] if stopped else None,
                "earlier": earlier,
            }
            save(model, tokenizer, record, out / f"step_{step}")
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(step, round(seconds), record["losses"], json.dumps(scores), flush=True)
        if stopped:
            break
    return record


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict, folder: pathlib.Path
) -> None:
    """Write weights, tokenizer and the record as a folder that transformers and vLLM load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Command line: every field of the recipe is an option. Returns the exit code."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    for name, default in asdict(Recipe()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    options = vars(parser.parse_args(arguments))
    out, threads = options.pop("out"), options.pop("threads")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    record = train(Recipe(**options), out)
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
