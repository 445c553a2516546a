"""What an engine that ran out of GPU memory says, and what the next one does less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.engine.engine import EngineOptions
from actors.engine.gpu_memory import MemoryNote, OutOfGpuMemory, admitting_less, write_note_of

SAID = "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has 1 GiB free. See the manual"


class Worker:
    """Of an engine; it runs out of memory with its second step."""

    def __init__(self) -> None:
        self.steps = 0

    def execute_model(self, step: int, *, last: bool) -> int:
        self.steps += 1
        if self.steps > 1:
            raise torch.OutOfMemoryError(SAID)
        return step + last


def test_a_worker_leaves_a_note_of_its_end() -> None:
    note, worker, other = MemoryNote(), Worker(), RuntimeError("the core died")
    write_note_of(worker, note.file)
    assert worker.execute_model(4, last=True) == 5
    assert note.explained(other) is other
    with pytest.raises(torch.OutOfMemoryError):
        worker.execute_model(5, last=False)
    explained = note.explained(other)
    assert isinstance(explained, OutOfGpuMemory)
    assert str(explained) == SAID.removesuffix(". See the manual")
    assert not Path(note.file).exists()
    assert isinstance(note.explained(torch.OutOfMemoryError(SAID)), OutOfGpuMemory)


def test_each_time_half_is_admitted_and_no_less_than_an_eighth() -> None:
    asked = EngineOptions("m", max_num_seqs=256, max_num_batched_tokens=2048)
    less = [admitting_less(asked, times) for times in range(6)]
    assert less[0] is asked
    assert [o.max_num_seqs for o in less] == [256, 128, 64, 32, 32, 32]
    assert [o.max_num_batched_tokens for o in less] == [2048, 1024, 512, 256, 256, 256]
    assert admitting_less(EngineOptions("m"), 1).max_num_batched_tokens == 4096
    assert admitting_less(EngineOptions("m", max_num_seqs=1), 3).max_num_seqs == 1
