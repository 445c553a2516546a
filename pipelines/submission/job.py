"""What a job is called, what it runs, and the plain command that does the same."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwiser.errors import UserError

RUN, STAGES, PART = "stepwiser_run", "stepwiser_stages", "stepwiser_part"
"""Keys of a job's metadata."""
WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""What Ray waits after SIGTERM before it kills; its default of 3 s ends no engine in order."""
STOP_S = 180
"""What a stage may need to end: its last count of two pools of engines, and their shutdown."""
NOT_TO_SEND = ("RAY_", "PYTHONPATH")
"""Beginnings of variables that Ray sets by itself, the cluster's token among them."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Job:
    """One start of a command on a run."""

    command: str
    """`annotate`, `quickstart`, `serve` …"""
    stages: tuple[str, ...]
    """Stages that it runs; what is none counts as one of its own."""
    run: str
    """The run directory, as every node calls it."""
    words: tuple[str, ...] = ()
    """What follows the command."""
    part: str = ""
    """The share of the work that it takes (`0/4`); empty: all."""

    @property
    def key(self) -> str:
        """The same for every start of the same work: name of the run, command, share, and a mark
        that keeps runs of one name apart."""
        mark = hashlib.sha256(self.run.encode()).hexdigest()[:6]
        name = re.sub(r"[^a-z0-9]+", "-", self.run.rstrip("/").rpartition("/")[2].lower())
        part = f"-{self.part.replace('/', 'of')}" if self.part else ""
        return f"{name.strip('-') or 'run'}-{self.command}{part}-{mark}"

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "pipelines.cli", self.command, *self.words])

    @property
    def metadata(self) -> dict[str, str]:
        known = {RUN: self.run, STAGES: ",".join(self.stages), PART: self.part}
        return {name: text for name, text in known.items() if text}


@dataclass(frozen=True)
class Known:
    """A job that a cluster knows. Times are seconds since the epoch."""

    name: str
    """Its submission id."""
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    run: str = ""
    stages: tuple[str, ...] = ()
    part: str = ""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""
    stop_s: int | None = None
    """Seconds that it has to end; None: Ray's own default."""

    @property
    def over(self) -> bool:
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


def at_work(job: Job, known: Iterable[Known]) -> Known | None:
    """A job that has not ended and does some of the same work; None where there is none."""
    for one in known:
        apart = job.part and one.part and job.part != one.part
        if not one.over and one.run == job.run and set(one.stages) & set(job.stages) and not apart:
            return one
    return None


def next_name(job: Job, known: Iterable[Known]) -> str:
    """The submission id of the next start. Ray takes no id twice, so that of two people who submit
    the same at once only one is heard."""
    starts = [int(one.name.rpartition("-")[2]) for one in known if _is_start_of(one.name, job.key)]
    return f"{job.key}-{max(starts, default=0) + 1}"


def find(name: str, known: Sequence[Known]) -> Known:
    """A job by its id, or the last start of what an id without its number names.

    Raises UserError where there is none.
    """
    for one in known:
        if one.name == name:
            return one
    starts = [one for one in known if _is_start_of(one.name, name)]
    if starts:
        return max(starts, key=lambda one: int(one.name.rpartition("-")[2]))
    there = ", ".join(one.name for one in known[-10:]) or "none"
    raise UserError(f"the cluster knows no job {name}; the last ones are: {there}")


def _is_start_of(name: str, key: str) -> bool:
    return re.fullmatch(re.escape(key) + r"-\d+", name) is not None


def variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the job: `NAME=value`, or `NAME` for the value that it has here.

    Raises UserError for what is neither, for a name that is not set here, and for what Ray sets.
    """
    found = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not _NAME.fullmatch(name):
            raise UserError("--env takes NAME=value, or NAME for the value that it has here")
        if name.startswith(NOT_TO_SEND):
            raise UserError(
                f"--env {name}: Ray sets this for its jobs, and shows what a job was given to "
                "whoever sees the dashboard: leave it out"
            )
        if not separator and name not in environment:
            raise UserError(
                f"--env {name}: this shell has no such variable: set it, or give =value"
            )
        found[name] = value if separator else environment[name]
    return found


def plain_line(
    job: Job, name: str, address: str, folder: Path, own: Iterable[str], stop_s: int
) -> str:
    """`ray job submit …` that does the same.

    ``own``: names of the variables that were given. Their values stand nowhere: the shell that the
    line is typed in has to have them.
    """
    env = json.dumps({"env_vars": {WAIT: str(stop_s), **{one: f"${one}" for one in own}}})
    quoted = shlex.quote(env)
    for one in own:
        quoted = quoted.replace(f'"${one}"', f'"\'"${one}"\'"')
    words = ["ray", "job", "submit", "--no-wait", "--address", address, "--submission-id", name]
    words += ["--working-dir", str(folder), "--metadata-json", json.dumps(job.metadata)]
    return f"{shlex.join(words)} --runtime-env-json {quoted} -- {job.entrypoint}"
