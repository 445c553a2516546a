"""Measures a base model: solving, judging freely, judging when forced, and direct verdicts.

``python -m stepwiser.tasks.pretrain_scores DIR --problems 300 --write`` puts the scores into the
``training.json`` of the checkpoint DIR.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepwiser.tasks.arithmetic import (
    ArithmeticProblem,
    first_error,
    make_problems,
    split_lines,
)
from stepwiser.tasks.transcripts import (
    GLANCE,
    NEGATIVE,
    POSITIVE,
    RECOMPUTE,
    judge_prompt,
    sample_judge_case,
    sample_turns,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VERDICT_PROMPT = GLANCE + "\\boxed{"


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    temperature: float,
    max_new_tokens: int,
) -> list[str]:
    """One continuation for each prompt text, up to ``<eos>``; temperature 0 is greedy."""
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        batch = tokenizer(["<bos>" + prompts[i] for i in rows], padding=True, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        with torch.no_grad():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=temperature > 0,
                temperature=temperature or 1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
            )
        for i, ids in zip(rows, out[:, width:].tolist(), strict=True):
            texts[i] = tokenizer.decode(ids).split("<eos>")[0]
    return texts


def read_verdict(text: str) -> bool | None:
    """True for a Positive answer, False for a Negative one, None without a verdict."""
    return True if POSITIVE in text else False if NEGATIVE in text else None


def harmonic_mean(a: float, b: float) -> float:
    """Harmonic mean, 0 when either is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0


def _chunk_scores(
    solutions: list[tuple[ArithmeticProblem, list[str], int]], verdicts: Sequence[bool | None]
) -> dict[str, float]:
    """ProcessBench accuracies and F1; ``verdicts`` cover each solution up to its first error.

    Only a Negative stops a judge; an answer without a verdict lets the chunk pass.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    at = 0
    for _, chunks, error in solutions:
        count = len(chunks) if error < 0 else error + 1
        mine = verdicts[at : at + count]
        at += count
        first = next((i for i, v in enumerate(mine) if v is False), -1)
        hits[error < 0].append(first == error)
    wrong, right = (sum(hits[k]) / max(1, len(hits[k])) for k in (False, True))
    return {"f1": harmonic_mean(wrong, right), "wrong": wrong, "right": right}


def _by_label(verdicts: Sequence[bool | None], labels: Sequence[bool]) -> tuple[float, float]:
    """Shares of right chunks called right and of wrong chunks called wrong."""
    shares = []
    for label in (True, False):
        mine = [v is label for v, x in zip(verdicts, labels, strict=True) if x is label]
        shares.append(sum(mine) / max(1, len(mine)))
    return shares[0], shares[1]


def _direct(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], yes: str, no: str
) -> list[bool]:
    """For each text, whether ``yes`` is likelier than ``no`` as its next token."""
    import torch

    pair = [tokenizer.convert_tokens_to_ids(yes), tokenizer.convert_tokens_to_ids(no)]
    found: list[bool] = []
    for start in range(0, len(texts), 256):
        batch = tokenizer(
            ["<bos>" + t for t in texts[start : start + 256]],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        last = batch["attention_mask"].sum(1) - 1
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        chosen = logits[torch.arange(len(last)), last][:, pair]
        found += (chosen[:, 0] > chosen[:, 1]).tolist()
    return found


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: int = 96,
    judge: bool = True,
    seed: int = 990_000,
) -> dict[str, float]:
    """Scores on ``problems`` fresh problems, 2 solutions each, all shares in 0..1.

    F1s are those of ProcessBench against the oracle on up to ``problems`` right and as many wrong
    solutions that the model itself sampled at temperature 1. The caller's random state is kept.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = make_problems(problems, seed)
        asked = [p for p in fresh for _ in range(2)]
        texts = sample(model, tokenizer, [p.question + "\n" for p in asked], 1.0, 72)
        solutions = []
        for problem, text in zip(asked, texts, strict=True):
            chunks = split_lines(text)
            solutions.append((problem, chunks, first_error(problem, chunks)))
        solved = [t.endswith(f"\\boxed{{{p.answer}}}") for p, t in zip(asked, texts, strict=True)]
        flawed = [done and error >= 0 for done, (*_, error) in zip(solved, solutions, strict=True)]
        scores = {
            "pass_at_1": sum(solved) / len(solved),
            "right_by_wrong_steps": sum(flawed) / max(1, sum(solved)),
        }
        if not judge:
            return scores
        right = [s for s in solutions if s[2] < 0][:problems]
        # An error at the end of a solution that simply stops is not one of a chunk: skip it.
        wrong = [s for s in solutions if s[2] >= 0 and s[1]][:problems]
        judged = right + wrong
        prompts, labels = [], []
        for problem, chunks, error in judged:
            for i in range(len(chunks) if error < 0 else error + 1):
                prompts.append(judge_prompt(problem.question, chunks[:i], chunks[i]))
                labels.append(i != error)
        for name, start, temperature in (
            ("free", "", 1.0),
            ("free_greedy", "", 0.0),
            ("forced", RECOMPUTE, 1.0),
            ("forced_greedy", RECOMPUTE, 0.0),
        ):
            answers = sample(model, tokenizer, [p + start for p in prompts], temperature, 64)
            verdicts = [read_verdict(a) for a in answers]
            found = _chunk_scores(judged, verdicts)
            scores |= {f"{name}_{k}": v for k, v in found.items()}
            if name == "free":
                scores["recompute_share"] = sum(RECOMPUTE in a for a in answers) / len(answers)
            if name.startswith("forced"):
                a, b = _by_label(verdicts, labels)
                scores |= {f"{name}_chunk_right": a, f"{name}_chunk_wrong": b}
                scores[f"{name}_no_verdict"] = verdicts.count(None) / len(verdicts)
        direct = _direct(
            model, tokenizer, [p + VERDICT_PROMPT for p in prompts], "Positive", "Negative"
        )
        scores["direct_glance_f1"] = _chunk_scores(judged, direct)["f1"]
        scores["direct_glance_balanced"] = sum(_by_label(direct, labels)) / 2
        scores |= _on_training_cases(model, tokenizer, 2 * problems, seed)
    return {k: round(v, 4) for k, v in scores.items()}


def _on_training_cases(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> dict[str, float]:
    """Accuracy per verdict on fresh cases of the training distribution, three formats."""
    rng = random.Random(f"cases-{seed}")
    cases = [sample_judge_case(rng) for _ in range(count)]
    labels = [c.right for c in cases]
    prompts = [c.prompt for c in cases]
    answers = sample(model, tokenizer, [p + RECOMPUTE for p in prompts], 0.0, 64)
    right, wrong = _by_label([read_verdict(a) for a in answers], labels)
    direct = _direct(
        model, tokenizer, [p + VERDICT_PROMPT for p in prompts], "Positive", "Negative"
    )
    texts, signs = [], []
    for _ in range(count):
        text = ""
        for i, (part, sign) in enumerate(sample_turns(rng)):
            text += part
            if i:  # the first verdict is not taught
                texts.append(text)
                signs.append(sign == "+")
            text += sign
    turns = _direct(model, tokenizer, texts, "+", "-")
    return {
        "cases_greedy_right": right,
        "cases_greedy_wrong": wrong,
        "cases_direct_glance_balanced": sum(_by_label(direct, labels)) / 2,
        "cases_direct_turns_balanced": sum(_by_label(turns, signs)) / 2,
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="a checkpoint")
    parser.add_argument("--problems", type=int, default=300, help="fresh problems, 2 samples each")
    parser.add_argument("--seed", type=int, default=770_000)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--write", action="store_true", help="put the scores into training.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    scores = evaluate(model, tokenizer, options.problems, seed=options.seed)
    if options.write:
        path = options.folder / "training.json"
        record = json.loads(path.read_text())
        record["scores"] = scores
        record["scored_on"] = {"problems": options.problems, "seed": options.seed}
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(scores, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
