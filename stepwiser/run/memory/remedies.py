"""Settings with which a plan fits that does not: each one is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import Any

from stepwiser.config import RunConfig
from stepwiser.config.impossible import refuse_impossible
from stepwiser.config.loading import parse_config, set_key
from stepwiser.errors import UserError

WANTED = 3
"""Settings that a person is offered, each of which is enough."""
MOST = 5
"""Settings that are tried together where none is."""

Fits = Callable[[RunConfig], bool]

Setting = tuple[str, Any]
"""A key with the value to give it."""


def remedies(config: RunConfig, stages: Sequence[str], fits: Fits) -> tuple[bool, list[Setting]]:
    """Settings that would make a plan fit, each as near to the present value as does.

    The flag says whether any one of them is enough, which is so for up to three; else they are the
    fewest that are enough together. No setting at all: nothing that is tried makes it fit.
    """
    choices = {key: list(values) for key, values in _choices(config)}
    alone: list[Setting] = []
    for key, values in choices.items():
        found = _nearest(config, stages, key, values, fits)
        if found is not None:
            alone.append((key, found))
    if alone:
        return True, alone[:WANTED]
    tried = [key for key, values in choices.items() if values]
    more = (combinations(tried, number) for number in range(2, MOST + 1))
    for keys in chain.from_iterable(more):
        together = _together(config, stages, keys, choices, fits)
        if together:
            return False, together
    return False, []


def words(enough: bool, settings: Sequence[Setting]) -> str:
    """What to do, in words."""
    if not settings:
        return (
            "no setting of engines and learners makes it fit: take a smaller model or a machine "
            "with more memory"
        )
    written = [f"{key}={_written(value)}" for key, value in settings]
    if len(written) == 1 or not enough:
        return "it fits with " + " ".join(written)
    return "it fits with any one of " + ", ".join(written)


def with_settings(
    config: RunConfig, stages: Sequence[str], settings: Sequence[Setting]
) -> RunConfig | None:
    """The configuration with other values; None where they cannot be had together."""
    raw = config.model_dump(mode="json")
    try:
        for key, value in settings:
            set_key(raw, key, value, key)
        changed = parse_config(raw)
        refuse_impossible(changed, "changed", stages)
    except UserError:
        return None
    return changed


def _together(
    config: RunConfig,
    stages: Sequence[str],
    keys: Sequence[str],
    choices: dict[str, list[Any]],
    fits: Fits,
) -> list[Setting]:
    """These at their last value, each given back as much as still fits."""
    settings = {key: choices[key][-1] for key in keys}
    for key in keys:
        for value in choices[key]:
            tried = with_settings(config, stages, list((settings | {key: value}).items()))
            if tried is not None and fits(tried):
                settings[key] = value
                break
        else:
            return []
    return list(settings.items())


def _nearest(
    config: RunConfig, stages: Sequence[str], key: str, values: Sequence[Any], fits: Fits
) -> Any:
    for value in values:
        tried = with_settings(config, stages, [(key, value)])
        if tried is not None and fits(tried):
            return value
    return None


def _choices(config: RunConfig) -> Iterator[tuple[str, list[Any]]]:
    """Keys that memory depends on, with values that need less and less; results stay what they
    are, or change in rounding alone, for all keys before the last two."""
    engine, learner = config.engine, config.learner
    yield "learner.max_tokens_per_microbatch", _halved(learner.max_tokens_per_microbatch, 256)
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing", [True]
    yield "engine.count", list(range(engine.count - 1, 0, -1))
    # What a CPU engine has without being told.
    yield "engine.kv_cache_mb", _halved(engine.kv_cache_mb or 1024, 64)
    yield "engine.max_num_seqs", _halved(engine.max_num_seqs, 8)
    yield "learner.workers", list(range(learner.workers - 1, 0, -1))
    if config.train.evaluator_engines:
        yield "train.evaluator_engines", [0]
    yield "cluster.object_store_mb", _halved(config.cluster.object_store_mb, 128)
    if learner.precision == "float32":
        yield "learner.precision", ["bfloat16"]
    if engine.dtype == "float32":
        yield "engine.dtype", ["bfloat16"]


def _halved(value: int, least: int) -> list[int]:
    values = []
    while (value := value // 2) >= least:
        values.append(value)
    return values


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
