"""Settings that name something of this machine, which a cluster may not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from pipelines.submission.travel import Cargo
from stepwiser.config import RunConfig
from stepwiser.config.addresses import LocalPlace, scheme_of, without_file_scheme


@dataclass(frozen=True)
class Findings:
    """What must be changed before a job can run, and what a person should know."""

    refused: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


def find_places(config: RunConfig, here: Path, cargo: Cargo) -> Findings:
    """Hold the places that a configuration names against what goes along.

    ``here``: the folder that relative paths start from on this machine.
    """
    refused, warned = [], []
    if words := run_dir_problem(config.run_dir):
        refused.append(words)
    for key, value in _places(config):
        if key == "run_dir" or scheme_of(value):
            continue
        path = Path(value)
        if value.startswith("~"):
            refused.append(
                f"{key}={value} is a folder of whoever runs the job over there: give its whole path"
            )
        elif not (here / path).exists():
            continue  # a name, or a path of the cluster's
        elif path.is_absolute():
            warned.append(
                f"{key}={value} is on this machine: every node needs the same at the same place"
            )
        elif not cargo.has(path.as_posix()):
            refused.append(
                f"{key}={value} is on this machine, and no node has it: add --with {value} where "
                "it is small, or put it where every node sees it and give that path"
            )
    refused += _own_verifier(config.answer_checker, here, cargo)
    return Findings(tuple(refused), tuple(warned))


def run_dir_problem(run_dir: str) -> str:
    """Why a job cannot have this run directory; empty where it can."""
    if scheme_of(run_dir) or Path(run_dir).is_absolute():
        return ""
    return (
        f"run_dir={run_dir} would lie in the job's own copy of the program on the head, which goes "
        "when the job has ended: give a folder that every node sees (run_dir=/shared/"
        f"{Path(run_dir).name}) or an address (run_dir=s3://bucket/{Path(run_dir).name})"
    )


def _own_verifier(checker: str, here: Path, cargo: Cargo) -> Iterator[str]:
    module, separator, _ = checker.partition(":")
    if not separator or scheme_of(checker):
        return
    top = module.split(".")[0]
    for place in (f"{top}.py", top):
        if (here / place).exists() and not cargo.has(place):
            yield f"answer_checker={checker} is in {place}, which no node has: add --with {place}"


def _places(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys whose values are places, with these; the text of a chat template is none any more."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _places(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for position, one in enumerate(value):
                if isinstance(one, BaseModel):
                    yield from _places(one, f"{prefix}{name}.{position}.")
        elif isinstance(value, str) and (
            LocalPlace in get_args(field.annotation)
            or any(getattr(one, "func", None) is without_file_scheme for one in field.metadata)
        ):
            yield f"{prefix}{name}", value
