"""Log-probs of a vocabulary in blocks beside those of whole logits: how equal, in how much memory.

    python -m benchmarks.training.loss WAY TOKENS WORDS WIDTH FILE

Each way is a process of its own: log-probs of random tokens, and the gradients of their mean,
forward and backward in float32 on one thread. Its memory is the most that it has had resident, less
what was there before. Hidden states and the output layer are; their gradients are not, and every
way needs them, so they are taken off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from benchmarks.command import CONFIG

Way = Literal["whole", "blocks"]
TOKENS, WORDS, WIDTH = 4096, 150_000, 64


def measure_loss(tokens: int = TOKENS, words: int = WORDS, width: int = WIDTH) -> dict[str, float]:
    """``loss_memory_ratio`` of blocks by whole logits and ``loss_difference``, the largest of
    log-probs in nats and of gradients by the largest of their kind; the MB of both."""
    whole, blocks = (_run(way, tokens, words, width) for way in ("whole", "blocks"))
    gaps = [float((blocks["logprobs"] - whole["logprobs"]).abs().max())]
    for name in ("for_hidden", "for_weight"):
        gaps.append(float((blocks[name] - whole[name]).abs().max() / whole[name].abs().max()))
    return {
        "loss_memory_ratio": float(blocks["bytes"] / whole["bytes"]),
        "loss_difference": max(gaps),
        "loss_mb": float(blocks["bytes"]) / 1e6,
        "loss_mb_whole": float(whole["bytes"]) / 1e6,
    }


def _run(way: Way, tokens: int, words: int, width: int) -> Any:
    from safetensors.torch import load

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found"
        command = [sys.executable, "-m", "benchmarks.training.loss", way]
        finished = subprocess.run(
            [*command, str(tokens), str(words), str(width), str(file)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIG.parent.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(f"{way} ended with {finished.returncode}: {finished.stderr[-2000:]}")
        return load(file.read_bytes())


def measure(way: Way, tokens: int, words: int, width: int) -> dict[str, Any]:
    """In this process: bytes, log-probs [tokens] and both gradients."""
    import torch

    from stepwiser.training.grpo import token_logprobs
    from stepwiser.training.vocabulary import vocabulary_logprobs

    def gradients(hidden: Any, weight: Any, ids: Any) -> tuple[Any, ...]:
        if way == "whole":
            logprobs = token_logprobs(hidden @ weight.T, ids)
        else:
            logprobs, _ = vocabulary_logprobs(hidden, weight, ids)
        return (logprobs.detach(), *torch.autograd.grad(logprobs.mean(), (hidden, weight)))

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(words, width, generator=generator, requires_grad=True)
    ids = torch.randint(words, (tokens,), generator=generator)
    gradients(hidden[:2], weight[:300], ids[:2] % 300)  # whatever libraries load at first
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    logprobs, for_hidden, for_weight = gradients(hidden, weight, ids)
    extra = _resident("VmHWM") - before - for_hidden.nbytes - for_weight.nbytes
    return {
        "bytes": torch.tensor(float(extra), dtype=torch.float64),
        "logprobs": logprobs,
        "for_hidden": for_hidden,
        "for_weight": for_weight,
    }


def _resident(name: str) -> int:
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(name + ":"):
            return int(row.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this measures on Linux only")


def main() -> None:
    from safetensors.torch import save

    way, *sizes, file = sys.argv[1:]
    tokens, words, width = map(int, sizes)
    assert way in ("whole", "blocks")
    found = measure("whole" if way == "whole" else "blocks", tokens, words, width)
    Path(file).write_bytes(save(found))


if __name__ == "__main__":
    main()
