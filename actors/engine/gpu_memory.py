"""An engine whose pass did not fit on its GPU: how that is known, and what the next one does less.

vLLM takes its memory when it starts, by a trial pass. What comes later may yet be larger: another
process on the card, fragments, kernels that ask for a work space. The error ends the engine, and
the process that it happened in where the core has one of its own, of which only the end is seen.
So the worker leaves a note.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.engine.engine_options import EngineOptions
from actors.torch_errors import first_words, is_out_of_memory

HALVINGS = 3
"""At most: an eighth of what was asked for is slow, and less would not be what is missing."""
BATCHED_TOKENS = 8192
"""Of a step, where no number is set: about what vLLM itself takes on a GPU."""
PASSES = ("execute_model", "sample_tokens")
"""What vLLM asks of a worker in a step."""

logger = logging.getLogger(__name__)


class OutOfGpuMemory(RuntimeError):
    """A pass of the engine did not fit on its GPU."""


class MemoryNote:
    """The name of a file in which a worker says that it ran out of memory; else there is none."""

    def __init__(self) -> None:
        name = f"sw-out-of-memory-{secrets.token_hex(8)}"
        self.file = str(Path(tempfile.gettempdir()) / name)

    def explained(self, error: Exception) -> Exception:
        """The error that ended an engine, or what the worker wrote where that was the cause."""
        said = first_words(error) if is_out_of_memory(error) else None
        with contextlib.suppress(FileNotFoundError):
            said = Path(self.file).read_text()
            Path(self.file).unlink()
        return error if said is None else OutOfGpuMemory(said)


def write_note_of(worker: Any, file: str) -> None:
    """Have a worker's passes leave a note where they run out of memory."""
    for name in PASSES:
        if (run := getattr(worker, name, None)) is not None:
            setattr(worker, name, _noting(run, file))


def _noting(run: Callable[..., Any], file: str) -> Callable[..., Any]:
    def noting(*arguments: Any, **named: Any) -> Any:
        try:
            return run(*arguments, **named)
        except Exception as error:
            if is_out_of_memory(error):
                Path(file).write_text(first_words(error))
            raise

    return noting


def admitting_less(options: EngineOptions, times: int) -> EngineOptions:
    """Options of an engine that has run out of memory so many times: half as many sequences, and
    tokens of a step, for each, as far as `HALVINGS` goes."""
    halved = min(times, HALVINGS)
    if not halved:
        return options
    sequences = max(1, options.max_num_seqs >> halved)
    tokens = options.max_num_batched_tokens or BATCHED_TOKENS
    less = replace(
        options,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(sequences, tokens >> halved),
    )
    logger.warning(
        "an engine ran out of GPU memory (%d times) and goes on with max_num_seqs=%d of %d and %d "
        "tokens a step; leave it more room: a lower engine.gpu_memory_utilization, "
        "engine.kv_cache_mb or engine.max_num_seqs",
        times,
        less.max_num_seqs,
        options.max_num_seqs,
        less.max_num_batched_tokens,
    )
    return less
