"""Weights from a learner to an engine on the same card, and whether they are the learner's."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import ray

from actors.pool.client import PoolClient
from actors.weight_sync.sender import StreamSender, make_sender
from actors.weight_sync.transfer import TransferBackend
from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.layers import layer_gaps
from benchmarks.gpu_drill.page import BARS
from benchmarks.gpu_drill.settings import Drill
from benchmarks.training.torch_arm import TorchTask, our_worker
from pipelines.session.session import Session
from stepwiser.config import RunConfig
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.training.experience import Experience, ExperienceBatch

TIMEOUT_S = 60.0
BUCKET_BYTES = 512 << 20
LEARNER_SHARE = 0.3
"""Of the card's memory and of its Ray GPU."""


@ray.remote(num_cpus=0)
class Publisher:
    """What the collector is in a training: it has the engines take weights."""

    def __init__(self, pool: PoolClient) -> None:
        self._pool = pool

    async def publish(self, version: int, source: Any) -> dict[str, float]:
        await self._pool.update_weights(source, version, TIMEOUT_S)
        return {}

    async def keep_copy(self, version: int, refs: list[Any]) -> None:
        await self._pool.keep_copy(version, refs)


@ray.remote(num_cpus=1)
class Learner:
    """A rank of the learner, without the training."""

    def __init__(self, task: TorchTask, gpu: bool, publisher: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._worker = our_worker(task, self._folder.name, gpu)
        self._gpu = gpu
        self._publisher = publisher
        self._senders: dict[TransferBackend, Any] = {}

    def size(self) -> int:
        """Bytes of the weights."""
        parts = self._worker.weight_buckets(BUCKET_BYTES)
        return sum(p.numel() * p.element_size() for part in parts for _, p in part)

    def change(self, seed: int) -> None:
        """Other weights, near the old ones."""
        import torch

        generator = torch.Generator(self._worker.device).manual_seed(seed)
        with torch.no_grad():
            for part in self._worker.weight_buckets(BUCKET_BYTES):
                for _, tensor in part:
                    if tensor.dim() == 2:
                        noise = torch.empty_like(tensor).normal_(generator=generator)
                        tensor.mul_(1 + 0.02 * noise)

    def publish(self, backend: TransferBackend, version: int) -> tuple[float, bool]:
        """Seconds until every engine has the weights, and whether they went this way."""
        if backend not in self._senders:
            self._senders[backend] = make_sender(
                backend, self._worker, BUCKET_BYTES, self._hand_over, self._keep
            )
        sender = self._senders[backend]
        if isinstance(sender, StreamSender):
            sender.settle()  # in training a step lies between
        began = time.monotonic()
        figures = sender.send(version, TIMEOUT_S)
        return time.monotonic() - began, "publish_fallbacks" not in figures

    def _hand_over(self, version: int, source: Any, timeout_s: float) -> dict[str, float]:
        return ray.get(self._publisher.publish.remote(version, source), timeout=timeout_s)

    def _keep(self, version: int, refs: list[Any]) -> None:
        ray.get(self._publisher.keep_copy.remote(version, refs))

    def gap(self, prompts: Sequence[list[int]], samples: Sequence[Sample]) -> float:
        """Mean absolute difference between the engine's log-probs of its samples and ours."""
        import torch

        from actors.learner.batches import response_batch

        batch = ExperienceBatch.from_experiences(
            [
                Experience(
                    prompt_ids=prompt,
                    response_ids=list(sample.token_ids),
                    advantage=0.0,
                    reward=0.0,
                    group=group,
                    weight_version=0,
                    engine_logprobs=sample.logprobs,
                )
                for group, (prompt, sample) in enumerate(zip(prompts, samples, strict=True))
            ]
        )
        rows = response_batch(batch, [(i,) for i in range(len(batch))]).to(self._worker.device)
        assert rows.engine_logprobs is not None
        with torch.no_grad():
            own = rows.spread(self._worker.logprobs(rows.tokens)[0])
        return float((own - rows.engine_logprobs).abs()[rows.mask].mean())

    def free_bytes(self) -> int:
        """Of the card; 0 on a CPU."""
        import torch

        self._worker.free_unused()
        return int(torch.cuda.mem_get_info()[0]) if self._gpu else 0


def config_of(drill: Drill) -> RunConfig:
    """An engine and a learner on one card."""
    return drill.config(
        "weight_sync",
        "engine.count=1",
        *drill.shares(1, beside=LEARNER_SHARE),
        "train.colocated=" + str(not drill.dry).lower(),
        f"learner.gpus={0 if drill.dry else LEARNER_SHARE}",
    )


def measure_weight_sync(drill: Drill, record: Record) -> None:
    """`update_ms` of 1 GB by memory of the card, the same by the object store, sleep and wake.

    After every change the log-probs of both are compared, before and after it is published. Where
    they are further apart than rounding, `layers` says after which layer that begins.
    """
    config = config_of(drill)
    with Session(config) as session:
        session.start(["annotate"])
        model = session.policy_dir()
        pool = session.pool(model)
        publisher = Publisher.remote(pool.client())
        task = _task(model, drill)
        learner = Learner.options(num_gpus=config.learner.gpus).remote(
            task, not drill.dry, publisher
        )
        gigabytes = ray.get(learner.size.remote()) / 1e9
        prompts = [
            session.prompts(model).policy_ids(problem.question)
            for problem in session.problems("train", 16)
        ]
        record(weights_gb=gigabytes)
        gaps: dict[str, float] = {}

        def compare() -> float:
            sampling = Sampling(64 if not drill.dry else 16, logprobs=True)

            async def sampled() -> list[list[Sample]]:
                return list(await asyncio.gather(*(pool.generate(p, sampling) for p in prompts)))

            samples = [one for (one,) in session.run(sampled())]
            return float(ray.get(learner.gap.remote(prompts, samples)))

        gaps["start"] = compare()
        record(logprob_gap=gaps["start"], gaps=gaps)
        version = 0
        ways: tuple[TransferBackend, ...] = ("cuda_ipc", "object_store")
        for way in ways:
            seconds: list[float] = []
            straight = True
            for turn in range(drill.size.transfers):
                version += 1
                ray.get(learner.change.remote(version))
                if not turn:
                    gaps[f"{way}, before"] = compare()
                taken, own_way = ray.get(learner.publish.remote(way, version))
                seconds.append(taken)
                straight = straight and own_way
            gaps[f"{way}, after"] = compare()
            later = median(seconds[1:])
            record(
                **{
                    way: {
                        "first_ms": 1000 * seconds[0],
                        "later_ms": 1000 * later,
                        "went_this_way": straight,
                    }
                },
                gaps=gaps,
            )
            if way == "cuda_ipc":
                # The bar is for 1 GB, which the usual model is nearly.
                scale = 1.0 if drill.dry else 1.0 / gigabytes
                record(update_ms=1000 * later * scale)
                record(logprob_gap=max(gaps["start"], gaps["cuda_ipc, after"]))
        _sleep(session, pool, learner, version + 1, record)
        record(gaps=gaps | {"awake again": compare()})
    *_, bar = BARS["logprob_gap"]
    if drill.dry or max(gaps["start"], gaps["cuda_ipc, after"]) > bar:
        record(layers=layer_gaps(str(model_folder(model)), drill.precision))


def _sleep(session: Session, pool: Any, learner: Any, version: int, record: Record) -> None:
    """Seconds to sleep, and to wake with new weights as in training; what sleep gives back."""
    before = ray.get(learner.free_bytes.remote())
    began = time.monotonic()
    session.run(pool.sleep())
    slept = time.monotonic() - began
    given_back = ray.get(learner.free_bytes.remote()) - before
    woke, _ = ray.get(learner.publish.remote("cuda_ipc", version))
    record(sleep_s=slept, wake_s=woke, sleep_gives_back_gb=given_back / 1e9)


def _task(model: str, drill: Drill) -> TorchTask:
    return TorchTask(
        arm="ours",
        model_dir=model,
        precision="float32" if drill.dry else "bfloat16",
        threads=1,
        shared=True,
        prompts=0,
        group_size=1,
        prompt_tokens=(1, 1),
        response_tokens=(1, 1),
        micro_batch=0,
        token_budget=16384,
        updates=1,
        answer="",
    )
