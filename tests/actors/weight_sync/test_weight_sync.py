"""Weights sent straight into a real engine: buckets, the rendezvous, and transfers that break
off."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from actors.engine.engine import Engine, EngineOptions
from actors.weight_sync import buckets
from actors.weight_sync.receiver import has_room
from actors.weight_sync.rendezvous import Rendezvous
from actors.weight_sync.sender import Outgoing
from actors.weight_sync.shared_memory import export_memory, memory_key
from actors.weight_sync.transfer import TransferFailed, TransferSpec
from stepwiser.errors import UserError
from tests.support.engines import forward_logprobs, running_engine
from tests.support.tiny import make_tiny_model

TOLERANCE = 1e-5
PROMPT = list(range(5, 60))
CPU = torch.device("cpu")
WAYS = ("nccl", "cuda_ipc")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def models(request, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    tied = {"tie_word_embeddings": request.param}
    return [make_tiny_model(root / str(seed), seed=seed, **tied) for seed in range(2)]


@pytest.fixture(scope="module")
def loaded(models) -> Iterator[Engine]:
    with running_engine(models[0], max_num_seqs=8, kv_cache_bytes=32 * 2**20) as engine:
        yield engine


@pytest.fixture
def engine(loaded, models) -> Engine:
    """The module's engine with the first model's weights, version 0."""
    if loaded.weight_version != 0:
        asyncio.run(loaded.update_weights(str(models[0]), 0))
    return loaded


def _gap(engine: Engine, model: Path) -> float:
    """Mean over tokens, as training reports it (`logprob_gap`)."""
    scores = torch.tensor(asyncio.run(engine.score(PROMPT, 1)))
    return (scores - forward_logprobs(model, PROMPT, 1)).abs().mean().item()


Bucket = list[tuple[str, torch.Tensor]]


def _buckets(model: Path, number: int = 3) -> list[Bucket]:
    items = sorted(load_file(model / "model.safetensors").items())
    return [items[start::number] for start in range(number)]


def _heads(parts: Sequence[Bucket]) -> list[bytes]:
    return [buckets.header([(n, t.dtype, tuple(t.shape)) for n, t in part]) for part in parts]


class _Learner:
    """Rank 0 of a learner of one process, without the learning."""

    def __init__(
        self, engine: Engine, backend: Any, parts: Sequence[Bucket], version: int, timeout_s: float
    ) -> None:
        self.parts = parts
        heads = _heads(parts)
        rendezvous = Rendezvous.create("127.0.0.1", timeout_s)
        transfer = TransferSpec(
            backend, rendezvous.host, rendezvous.port, tuple(heads), timeout_s, rank=1, size=2
        )
        self.backend = backend
        self.engine_saw: list[BaseException | None] = []

        def hand_over() -> dict[str, float]:
            try:
                asyncio.run(engine.update_weights(transfer, version))
            except BaseException as error:
                self.engine_saw.append(error)
                raise
            self.engine_saw.append(None)
            return {"reward": 0.5}

        self.out = Outgoing(rendezvous, heads, CPU, hand_over)

    def send(self, first: int = 0, last: int | None = None) -> None:
        for part in self.parts[first:last]:
            flat = buckets.pack([tensor for _, tensor in part])
            if self.backend == "nccl":
                self.out.broadcast(flat)
            else:
                with export_memory(flat) as handle:
                    self.out.show({memory_key(CPU): handle})

    def answer_of_engine(self, within_s: float) -> BaseException | None:
        deadline = time.monotonic() + within_s
        while not self.engine_saw:
            assert time.monotonic() < deadline, "the engine is still waiting"
            time.sleep(0.01)
        return self.engine_saw[0]


def test_a_bucket_is_a_safetensors_file_and_comes_apart_again():
    tensors = [
        ("wide", torch.arange(3, dtype=torch.float64)),
        ("matrix", torch.randn(3, 5)),
        ("single", torch.tensor(2.5)),
        ("small", torch.randn(7).bfloat16()),
    ]
    (head,) = _heads([tensors])
    flat = buckets.pack([tensor for _, tensor in tensors])
    assert len(flat) == buckets.size(head) == 24 + 60 + 4 + 14
    read = load(buckets.blob(head, flat))
    for name, tensor in buckets.unpack(head, flat):
        assert torch.equal(tensor, dict(tensors)[name]) and torch.equal(read[name], tensor)
    assert len(read) == 4


@pytest.mark.parametrize("backend", WAYS)
def test_weights_that_were_sent_answer_exactly(engine, models, backend):
    learner = _Learner(engine, backend, _buckets(models[1]), 3, 60.0)
    learner.send()
    assert learner.out.finish() == {"reward": 0.5}
    assert learner.out.failure is None and engine.weight_version == 3
    assert _gap(engine, models[1]) < TOLERANCE
    one, other = (forward_logprobs(model, PROMPT, 1) for model in models)
    assert (one - other).abs().mean() > 1.0


def _silence(learner: _Learner) -> None:
    """The learner hangs after the first bucket."""
    learner.send(last=1)


def _death(learner: _Learner) -> None:
    """The learner's process, and with it the rendezvous, is gone after the first bucket."""
    learner.send(last=1)
    learner.out._rendezvous._store = None


def _giving_up(learner: _Learner) -> None:
    learner.send(last=1)
    learner.out._rendezvous.fail("the learner ran out of patience")


@pytest.mark.parametrize(
    ("backend", "trouble", "timeout_s", "words"),
    [
        ("nccl", _silence, 3.0, "not through after 3 s"),
        ("cuda_ipc", _silence, 3.0, "not through after 3 s"),
        ("cuda_ipc", _death, 300.0, "connection is broken"),
        ("nccl", _giving_up, 300.0, "out of patience"),
        ("cuda_ipc", _giving_up, 300.0, "out of patience"),
    ],
)
def test_a_transfer_that_breaks_off_changes_nothing_and_the_next_one_works(
    engine, models, backend, trouble: Callable[[_Learner], None], timeout_s, words
):
    learner = _Learner(engine, backend, _buckets(models[1]), 4, timeout_s)
    trouble(learner)
    failure = learner.answer_of_engine(within_s=60.0)
    assert isinstance(failure, TransferFailed) and words in str(failure)
    assert engine.weight_version == 0
    assert _gap(engine, models[0]) < TOLERANCE
    again = _Learner(engine, backend, _buckets(models[1]), 5, 60.0)
    again.send()
    assert again.out.finish() and engine.weight_version == 5
    assert _gap(engine, models[1]) < TOLERANCE


@pytest.mark.parametrize("backend", WAYS)
def test_the_learner_is_cut_too_when_no_engine_comes(backend):
    release = threading.Event()
    out = Outgoing(
        Rendezvous.create("127.0.0.1", 2.0), [], CPU, lambda: {"waited": release.wait(60.0)}
    )
    flat = torch.zeros(4, dtype=torch.uint8)
    out.broadcast(flat) if backend == "nccl" else out.show({})
    assert out.failure is not None and "not through after 2 s" in str(out.failure)
    assert out.finish() == {}
    release.set()


def test_weights_of_another_model_are_refused_before_any_of_them_moves(engine, models):
    parts = _buckets(models[1])
    renamed = [[(f"other.{name}", tensor) for name, tensor in parts[0]], *parts[1:]]
    short = [[(name, tensor[..., :-1]) for name, tensor in parts[0]], *parts[1:]]
    for wrong, words in (
        (parts[1:], "missing: "),
        (renamed, "unknown: other."),
        (short, "of another shape: "),
        ([*parts, parts[0]], "twice"),
    ):
        learner = _Learner(engine, "nccl", wrong, 7, 60.0)
        learner.send()
        with pytest.raises(UserError, match=words):
            learner.out.finish()
    assert engine.weight_version == 0 and _gap(engine, models[0]) < TOLERANCE


def test_an_engine_without_a_learner_on_its_gpu_says_so(engine, models):
    learner = _Learner(engine, "cuda_ipc", _buckets(models[1]), 8, 60.0)
    learner.out.show({"some other GPU": b""})
    failure = learner.answer_of_engine(within_s=60.0)
    assert isinstance(failure, TransferFailed) and "train.colocated" in str(failure)
    assert learner.out.finish() == {} and learner.out.failure is not None


def test_a_learner_that_is_not_there_is_named(engine):
    transfer = TransferSpec("nccl", "127.0.0.1", 1, tuple(_heads(_buckets_of(engine))), 2.0, 1, 2)
    with pytest.raises(TransferFailed, match=r"127\.0\.0\.1:1 does not answer"):
        asyncio.run(engine.update_weights(transfer, 9))


def _buckets_of(engine: Engine) -> list[Bucket]:
    return _buckets(Path(engine.options.model))


def test_what_is_on_a_cpu_is_copied_nowhere() -> None:
    flat = buckets.pack([torch.arange(4.0)])
    assert buckets.begin_to_host(flat)() is flat
    assert not has_room(1, CPU)


@pytest.mark.gpu
def test_a_gpu_is_copied_from_while_it_works_on() -> None:
    device = torch.device("cuda")
    flat = torch.arange(1 << 20, device=device).view(torch.uint8)
    finished = buckets.begin_to_host(flat)
    busy = torch.randn(2000, 2000, device=device)
    for _ in range(20):
        busy = busy @ busy / busy.norm()
    there = finished()
    assert there.is_pinned() and torch.equal(there.view(torch.int64), torch.arange(1 << 20))
    assert has_room(1 << 20, device)
    assert not has_room(torch.cuda.mem_get_info()[0], device)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", WAYS)
def test_between_two_processes_with_gpus(models, backend):
    """NCCL needs two GPUs; CUDA IPC needs a second process, since it opens nothing of its own."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL takes no two processes on one GPU, and there is only one")
    engine = Engine(EngineOptions(model=str(models[0]), dtype="bfloat16", max_model_len=256))
    engine.wait_ready(600.0)
    try:
        parts = [[(n, t.bfloat16()) for n, t in part] for part in _buckets(models[1])]
        context = torch.multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        learner = context.Process(target=_gpu_learner, args=(theirs, backend, parts))
        learner.start()
        transfer = mine.recv()
        asyncio.run(engine.update_weights(transfer, 1))
        assert mine.recv() is None
        mine.send("enough")
        learner.join(60.0)
        assert _gap(engine, models[1]) < 0.05
    finally:
        engine.shutdown()


def _gpu_learner(pipe: Any, backend: Any, parts: list[Bucket]) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1 if backend == "nccl" else 0)
    torch.cuda.set_device(device)
    heads = _heads(parts)
    rendezvous = Rendezvous.create("127.0.0.1", 120.0)
    out = Outgoing(rendezvous, heads, device, lambda: (pipe.poll(120.0) and {}) or {})
    pipe.send(
        TransferSpec(backend, rendezvous.host, rendezvous.port, tuple(heads), 120.0, rank=1, size=2)
    )
    for part in parts:
        flat = buckets.pack([tensor.to(device) for _, tensor in part])
        if backend == "nccl":
            out.broadcast(flat)
            continue
        with export_memory(flat) as handle:
            out.show({memory_key(device): handle})
    pipe.send(out.failure)
