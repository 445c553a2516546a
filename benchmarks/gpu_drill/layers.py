"""Where an engine's numbers leave those of transformers: the hidden states after each layer.

A program of its own, since its engine runs without graphs, in one process with the other model:

    python -m benchmarks.gpu_drill.layers MODEL float32|bfloat16

Prints one JSON object, of the same prompt in both: `gaps`, by layer the relative difference
||engine - transformers|| / ||transformers|| of the hidden states; `dtype`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKENS = 200
SECONDS = 90.0


def layer_gaps(model: str, dtype: str) -> dict[str, Any]:
    """What the program says of a model's folder. Raises RuntimeError with its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_drill.layers", model, dtype],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"layers of {model}: {done.stdout[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def main(model: str, dtype: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the layers are looked at in this process
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    generator = torch.Generator().manual_seed(0)
    llm = LLM(
        model,
        dtype=dtype,
        enforce_eager=True,  # a graph calls no hooks
        max_model_len=TOKENS + 8,
        max_num_seqs=1,
        gpu_memory_utilization=0.3,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    size = llm.model_config.get_vocab_size()
    ids = torch.randint(size // 8, size // 2, (TOKENS,), generator=generator).tolist()
    seen: list[torch.Tensor] = []
    llm.apply_model(lambda loaded: _watch(loaded, seen))
    llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1), use_tqdm=False)
    engine = [hidden[:TOKENS].float().cpu() for hidden in seen]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    other = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    seen.clear()
    _watch(other, seen)
    with torch.no_grad():
        other(torch.tensor([ids], device=device))
    gaps = {}
    for layer, (mine, hidden) in enumerate(zip(engine, seen, strict=True)):
        theirs = hidden[0].float().cpu()
        gaps[str(layer)] = float((mine - theirs).norm() / theirs.norm())
    print("\n" + json.dumps({"gaps": gaps, "dtype": dtype}), flush=True)
    os._exit(0)  # what is left is an engine that nobody asks any more


def _watch(model: Any, seen: list[torch.Tensor]) -> None:
    """Have every decoder layer add the stream that it hands on to ``seen``."""
    layers = next(m for name, m in model.named_modules() if name.endswith("layers"))
    for layer in layers:
        layer.register_forward_hook(_noting(seen))


def _noting(seen: list[torch.Tensor]) -> Callable[..., None]:
    def note(layer: Any, inputs: Any, output: Any) -> None:
        # vLLM's layers hand on what was added last and the stream before it, apart.
        parts = output if isinstance(output, tuple) else (output,)
        seen.append(sum(parts[1:2], parts[0]).detach().clone())

    return note


if __name__ == "__main__":
    main(*sys.argv[1:])
