"""Tokens per second of the annotation engine, beside raw vLLM and beside one request per step.

Every repeat annotates problems of its own with the real stage: labelers, a pool of one engine,
Parquet on disk. Raw vLLM then gets the very prompts that came up, all at once, which annotation
cannot (a prefix is known only when its response is): that is the ceiling. A third arm asks one
engine for the same prefixes as others do, one request a step and the next when it is answered. The
fourth is the pool as the config has it, with as many engines as the machine has cores for, which
one request at a time could not use.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.engine.engine import EngineOptions, engine_environment
from actors.pool.pool import EnginePool
from pipelines.annotation.dispatch import annotate_units
from pipelines.annotation.work import labeler_options
from pipelines.session.engine_options import engine_options
from pipelines.session.session import Session
from stepwiser.annotation.prefixes import PrefixTable
from stepwiser.data.records import Problem, group_by
from stepwiser.run.store import RunStore
from stepwiser.run.units import read_unit

Request = tuple[list[int], int, int]
"""Prompt ids, samples, most tokens of a sample."""

UNIT = 8
"""Problems of one unit."""


@dataclass(frozen=True)
class Rate:
    """Generated tokens and the seconds they took."""

    tokens: int
    seconds: float

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


@ray.remote
class RawEngine:
    """vLLM's own offline interface with the settings of a pool's engine, and nothing around it."""

    def __init__(self, options: EngineOptions) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=options.model,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            enforce_eager=options.enforce_eager,
            kv_cache_memory_bytes=options.kv_cache_bytes,
            **(
                {"gpu_memory_utilization": share}
                if (share := options.gpu_memory_utilization)
                else {}
            ),
            block_size=32,  # ours on a CPU; with vLLM's own 128 nothing here would be cached
            enable_prefix_caching=True,
            generation_config="vllm",
            seed=options.seed,
        )

    def generate(self, requests: Sequence[Request]) -> Rate:
        """All requests at once."""
        prompts = [{"prompt_token_ids": ids} for ids, _, _ in requests]
        params = [
            self._params(n=n, max_tokens=most, temperature=1.0, top_p=1.0)
            for _, n, most in requests
        ]
        started = time.monotonic()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - started
        return Rate(sum(len(c.token_ids) for o in outputs for c in o.outputs), seconds)

    def generate_in_sequence(self, requests: Sequence[Request]) -> Rate:
        """Each request when the one before is answered."""
        rates = [self.generate([request]) for request in requests]
        return Rate(sum(r.tokens for r in rates), sum(r.seconds for r in rates))


def measure_speed(
    session: Session, repeats: int, problems: int, sequential_requests: int, at_once: bool = False
) -> dict[str, Any]:
    """Rates of the arms, interleaved; ``problems`` of each repeat are its own.

    ``at_once``: all engines start together, which on a GPU takes a third of the time.

    Returns the median ratios ``vs_raw``, ``vs_sequential`` (of the whole pool) and
    ``vs_sequential_one_engine``, each repeat's rates (tokens/s), and ``prefix_hit_rate``, the share
    of prompt tokens that the cache of the one engine held.
    """
    model = session.policy_dir()
    every = session.problems("train", (repeats + 1) * problems)
    count = session.config.engine.count
    options = engine_options(session.config, model)
    raw = RawEngine.options(
        num_cpus=1,
        num_gpus=session.config.engine.gpus,
        runtime_env={"env_vars": engine_environment(options) | {"OMP_NUM_THREADS": "1"}},
    ).remote(options)
    with ThreadPoolExecutor(2 if at_once else 1) as starts:
        slots = {"one": 1, "whole": count} if count > 1 else {"one": 1}
        pools = {
            slot: starts.submit(session.pool, model, slot=slot, count=size)
            for slot, size in slots.items()
        }
    one = pools["one"].result()
    whole = pools["whole"].result() if "whole" in pools else None
    rows = []
    for number in range(repeats + 1):
        own = every[number * problems : (number + 1) * problems]
        if number == 0:
            own = own[: min(2 * UNIT, problems // 4)]  # warms all of them up
        store = RunStore(session.store.root / "one" / str(number))
        ours = _annotate(session, one, store, model, own)
        requests = list(asked(session, store, own))
        together: Rate = ray.get(raw.generate.remote(requests))
        in_turn: Rate = ray.get(
            # A policy whose solutions are one step has no prefixes.
            raw.generate_in_sequence.remote(
                spread(requests[len(own) :] or requests, sequential_requests)
            )
        )
        pooled = ours
        if whole:
            again = RunStore(session.store.root / "whole" / str(number))
            pooled = _annotate(session, whole, again, model, own)
        if number:
            rows.append(
                {
                    "one engine": ours.per_s,
                    "raw vLLM": together.per_s,
                    "one request at a time": in_turn.per_s,
                    f"whole pool, {count}": pooled.per_s,
                }
            )
    ray.kill(raw)
    (counts,) = session.run(one.stats())
    alone, raw_rate, sequential, machine = rows[0]
    return {
        "vs_raw": _ratio(rows, alone, raw_rate),
        "vs_sequential": _ratio(rows, machine, sequential),
        "vs_sequential_one_engine": _ratio(rows, alone, sequential),
        "prefix_hit_rate": counts.prefix_hit_rate,
        "rows": rows,
    }


def _ratio(rows: Sequence[dict[str, float]], one: str, other: str) -> float:
    return statistics.median(row[one] / row[other] for row in rows)


def _annotate(
    session: Session, pool: EnginePool, store: RunStore, model: str, problems: Sequence[Problem]
) -> Rate:
    """The real annotation of these problems, from the first unit handed out to the last written.

    The first problem is a unit of its own before that: labelers import the tokenizer's libraries
    meanwhile, as the other arms' engines have loaded their model before they are timed.
    """
    units = {"warm-up": list(problems[:1])}
    units |= {f"{i:06}": list(problems[i : i + UNIT]) for i in range(1, len(problems), UNIT)}
    counts: Counter[str] = Counter()
    started: list[float] = []

    def finished(unit: str, of_unit: dict[str, int]) -> None:
        if unit == "warm-up":
            started.append(time.monotonic())
        else:
            counts.update(of_unit)

    async def wanted(under_way: int) -> int:
        return len(units) if started else int(under_way == 0)

    options = labeler_options(session.config, model)
    session.run(annotate_units(pool, options, str(store.root), units, finished, wanted))
    seconds = time.monotonic() - started[0]
    return Rate(counts["response_tokens"] + counts["rollout_tokens"], seconds)


def asked(session: Session, store: RunStore, problems: Sequence[Problem]) -> Iterator[Request]:
    """The requests behind an annotation: the problems first, then the prefixes by problem."""
    config = session.config.annotate
    prompts = session.prompts(session.policy_dir())
    for problem in problems:
        yield prompts.policy_ids(problem.question), config.responses, config.max_tokens
    for unit in sorted(path.stem for path in Path(store.table_dir("values")).glob("*.parquet")):
        trajectories, values = read_unit(store, unit)
        for group in group_by(trajectories, "problem_id").values():
            prompt = prompts.policy_ids(group[0].question)
            table = PrefixTable(group)
            valued = {
                key
                for t, trajectory in enumerate(group)
                for key in table.of[t][: len(values.get(trajectory.trajectory_id, []))]
            }
            for key in sorted(valued):
                prefix = table.ids[key]
                most = max(1, config.max_tokens - len(prefix))
                yield [*prompt, *prefix], config.rollouts, most


def spread(requests: Sequence[Request], count: int) -> list[Request]:
    """``count`` of the requests, evenly from all of them."""
    stride = max(1, len(requests) // count)
    return list(requests[::stride][:count])
