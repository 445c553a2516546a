"""Which trainings an ablation compares, what each has to itself, and what came of it.

An arm is the configuration of the run with a few settings changed. All arms of a seed read the same
values and, unless they change them, the same labels; seeds have problems of their own. So arms are
compared seed by seed, and seeds are the independent units.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from stepwiser.annotation.statistics import Z95, mean_and_error
from stepwiser.config.impossible import refuse_impossible
from stepwiser.config.loading import parse_config, set_key
from stepwiser.config.models import RunConfig
from stepwiser.errors import UserError

SHARED = "shared"
"""Folder of what the arms of a seed have in common."""

START = "start"
"""Row of the judge before any training."""

STAGES = ("segment", "annotate", "label", "train")
"""Of an arm, in order; it shares what lies before the first that its settings change."""

_OWN = {
    "segment": (
        "policy_model",
        "answer_checker",
        "check_timeout_s",
        "data",
        "segment",
        "prompts.steps",
        "prompts.plain",
        "prompts.policy",
        "prompts.segment",
    ),
    "annotate": ("annotate",),
    "label": ("label",),
}
"""Settings that decide what a stage makes; all others are of training."""

_TAKEN = ("run_dir", "seed", "ablate")
"""Settings that no arm may change: they tell the arms apart."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")

# Student's t, 97.5 %, by degrees of freedom from 1.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One training that is compared."""

    name: str
    changes: dict[str, Any]
    """Dotted keys to the values that differ from the run's configuration."""
    own_stage: str
    """The first stage that the arm does not share with the others of its seed."""


def arms_of(config: RunConfig, only: Sequence[str] = ()) -> list[Arm]:
    """The arms to run, in the order of the configuration; all unless ``only`` names some.

    Raises UserError for a configuration without arms, a name that is none of theirs or cannot be a
    folder, and a setting that does not exist or cannot have its value, whichever arms are named.
    """
    settings = config.ablate
    if not settings.arms:
        raise UserError(
            "the config has no arms to compare: name each under ablate.arms with the settings that "
            "differ, as configs/ablate-embedded.yaml does"
        )
    for name in (*only, settings.reference):
        if name not in settings.arms:
            nearest = difflib.get_close_matches(name, settings.arms, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UserError(
                f"{name} is none of ablate.arms ({', '.join(settings.arms)}){hint}"
                + ("" if name in only else " (ablate.reference)")
            )
    arms = []
    for name, changes in settings.arms.items():
        if not _NAME.fullmatch(name) or name in (SHARED, START):
            raise UserError(
                f"ablate.arms.{name}: an arm's name becomes a folder beside {SHARED}: use letters, "
                f"digits, '-', '_' and '.', and neither {SHARED} nor {START}"
            )
        flat = dict(_flat(changes))
        arm = Arm(name, flat, _own_stage(flat))
        arm_config(config, arm, config.seed)  # a mistake in any arm shows before the first one runs
        arms.append(arm)
    return [arm for arm in arms if not only or arm.name in only]


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _own_stage(keys: Iterable[str]) -> str:
    stages = [
        stage
        for key in keys
        for stage, owned in _OWN.items()
        if any(key == name or key.startswith(name + ".") for name in owned)
    ]
    return min(stages, key=STAGES.index, default="train")


def seed_config(config: RunConfig, seed: int) -> RunConfig:
    """What the arms of a seed have in common: problems and labels of its own."""
    shift = 1000 * (seed - config.seed)
    return config.model_copy(
        update={
            "seed": seed,
            "run_dir": f"{seed_dir(config, seed)}/{SHARED}",
            "data": config.data.model_copy(update={"seed": config.data.seed + shift}),
            "evaluation_data": config.evaluation_data.model_copy(
                update={"seed": config.evaluation_data.seed + shift}
            ),
            "ablate": type(config.ablate)(),
        }
    )


def arm_config(config: RunConfig, arm: Arm, seed: int) -> RunConfig:
    """The whole configuration of one arm on one seed.

    Raises UserError for an unknown setting (naming the nearest), a value it cannot have, or a
    setting that an ablation sets itself.
    """
    where = f"ablate.arms.{arm.name}"
    raw = seed_config(config, seed).model_dump(mode="json")
    for key, value in arm.changes.items():
        if key.split(".")[0] in _TAKEN:
            raise UserError(f"{where}: {key} is what tells arms apart and cannot be changed by one")
        set_key(raw, key, value, f"{where}: {key}")
    made = parse_config(raw, where=where)
    refuse_impossible(made, where)
    return made.model_copy(update={"run_dir": f"{seed_dir(config, seed)}/{arm.name}"})


def seed_dir(config: RunConfig, seed: int) -> str:
    """Path or address of the folder of all run directories of a seed."""
    return f"{config.run_dir.rstrip('/')}/seed-{seed}"


# --- what came of it ------------------------------------------------------------------------------

Results = Mapping[str, Mapping[int, Mapping[str, float | None]]]
"""Figures by arm and seed; None for one that is not defined."""


@dataclass(frozen=True)
class Summary:
    """A figure of one arm over its seeds."""

    mean: float
    error: float | None
    """Standard error over seeds; None for a single one."""
    values: tuple[float, ...]
    """By seed, in order."""


@dataclass(frozen=True)
class Difference:
    """Another arm's figure minus the reference's, over the seeds that both have."""

    mean: float
    error: float | None
    low: float | None
    high: float | None
    """95 % interval, by Student's t; None for a single seed."""
    seeds: int


def summarize(results: Results, arm: str, figure: str) -> Summary | None:
    """Mean and standard error of a figure; None where no seed has it."""
    values = _known(results, arm, figure)
    if not values:
        return None
    mean, error = mean_and_error(list(values.values()))
    return Summary(mean, None if isnan(error) else error, tuple(values.values()))


def difference(results: Results, arm: str, reference: str, figure: str) -> Difference | None:
    """Mean of the differences seed by seed, with its interval; None without a common seed."""
    ours, theirs = _known(results, arm, figure), _known(results, reference, figure)
    gaps = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not gaps:
        return None
    mean, error = mean_and_error(gaps)
    if isnan(error):
        return Difference(mean, None, None, None, len(gaps))
    reach = t95(len(gaps) - 1) * error
    return Difference(mean, error, mean - reach, mean + reach, len(gaps))


def t95(freedom: int) -> float:
    """Half-width of a 95 % interval in standard errors, for so many degrees of freedom (≥ 1)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    # Cornish-Fisher expansion of the quantile: exact to three digits from here on.
    z = Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _known(results: Results, arm: str, figure: str) -> dict[int, float]:
    rows = results.get(arm, {})
    found = {seed: rows[seed].get(figure) for seed in sorted(rows)}
    return {seed: value for seed, value in found.items() if value is not None}


def as_dict(results: Results, arms: Sequence[str], reference: str, figure: str) -> dict[str, Any]:
    """Summary and difference of every arm, as the JSON report has them."""
    rows: dict[str, Any] = {}
    for arm in arms:
        summary = summarize(results, arm, figure)
        if summary is None:
            continue
        rows[arm] = {"mean": summary.mean, "error": summary.error, "values": list(summary.values)}
        gap = None if arm == reference else difference(results, arm, reference, figure)
        if gap is not None:
            rows[arm]["difference"] = vars(gap)
    return rows
