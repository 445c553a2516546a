"""`stepwiser submit`, `jobs`, `logs` and `stop`: a cluster's jobs from a machine that has neither
GPU nor Ray running. Heavy imports happen inside a command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.words import explained, place
from pipelines.submission.jobs_api import ADDRESS, Cluster

if TYPE_CHECKING:
    from pipelines.submission.job import Known
    from stepwiser.config import RunConfig

AddressOption = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, where its jobs are.",
    ),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=VALUE]", help="Variable of the job; a name alone has its value here."
    ),
]
AlongOption = Annotated[
    list[Path] | None,
    typer.Option("--with", parser=place, metavar="PATH", help="File or folder that goes along."),
]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Print what the job prints until it ends.")
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="As `submit` calls it; without its number the last.")
]


@dataclass(frozen=True)
class Errand:
    """A command that was read as if it were to run here."""

    command: str
    stages: tuple[str, ...]
    settings: RunConfig
    given: typer.Context


def own_words(context: typer.Context, command: str, words: Sequence[str]) -> typer.Context:
    """The words of a command as the command itself reads them.

    Raises click's UsageError for what it does not know.
    """
    found = context.find_root().command.get_command(context, command)
    # A context of its own: its errors are then those of the command itself.
    given: typer.Context = found.make_context(f"stepwiser {command}", list(words))
    if given.params.get("plan"):
        raise typer.BadParameter(
            f"--plan starts nothing and needs no cluster: `stepwiser {command} --plan`"
        )
    return given


def submit_job(
    errand: Errand, address: str, env: Sequence[str], along: Sequence[Path], follow: bool
) -> int:
    """`stepwiser submit`; returns the exit code, which is the job's where it is followed.

    Raises UserError for settings that mean nothing over there, for a cluster that does not answer,
    and where a job does the same work already.
    """
    from pipelines.submission import job as jobs_of
    from pipelines.submission.places import find_places
    from pipelines.submission.travel import gather, mebibytes, put_together
    from stepwiser.errors import UserError

    config, here = errand.settings, Path.cwd()
    variables = jobs_of.variables(env, os.environ)
    root = Path(__file__).resolve().parents[2]
    cargo = gather(root, here, errand.given.params["config"], along)
    findings = find_places(config, here, cargo)
    if findings.refused:
        raise UserError("; ".join(findings.refused))
    for warning in findings.warned:
        typer.secho(f"stepwiser: {warning}", fg="yellow", err=True)
    part = errand.given.params.get("shard") or ""
    words = tuple(_words(errand.given, cargo.config))
    # With and without a slash at its end a run is the same.
    run = config.run_dir.rstrip("/")
    job = jobs_of.Job(errand.command, errand.stages, run, words, part)
    stop_s = jobs_of.STOP_S + (round(config.serve.drain_s) if errand.command == "serve" else 0)

    cluster = Cluster(address)
    known = cluster.known()
    if (busy := jobs_of.at_work(job, known)) is not None:
        raise UserError(
            f"{busy.name} ({', '.join(busy.stages)}) works on {job.run} and has not ended: "
            f"`stepwiser logs {busy.name} --follow{_at(address)}` shows it, "
            f"`stepwiser stop {busy.name}{_at(address)}` ends it and keeps what is finished"
        )
    name = jobs_of.next_name(job, known)
    folder = _cache() / job.key
    put_together(cargo, folder)
    cluster.submit(job, name, folder, variables, stop_s)

    typer.secho(f"{name} is submitted to {cluster.address}", bold=True)
    typer.echo(f"  runs     {job.entrypoint}")
    typer.echo(f"  took     {len(cargo.files)} files, {mebibytes(cargo.size)}, of {root}")
    if variables:
        typer.echo(f"  has      {', '.join(sorted(variables))}")
    typer.echo(f"  follow   stepwiser logs {name} --follow{_at(address)}")
    typer.echo(f"  end      stepwiser stop {name}{_at(address)}")
    typer.echo("By Ray's own command, where this one is not at hand:")
    typer.echo(
        f"  {jobs_of.plain_line(job, name, cluster.address, folder, sorted(variables), stop_s)}"
    )
    return _follow(cluster, name, address) if follow else 0


def jobs(
    address: AddressOption = ADDRESS,
    run: Annotated[str | None, typer.Option(help="Only those of this run directory.")] = None,
) -> None:
    """List the jobs of a cluster: what they run, on which run, since when."""
    with explained():
        known = [one for one in Cluster(address).known() if run in (None, one.run)]
        if not known:
            typer.echo("no jobs" if run is None else f"no jobs of {run}")
            return
        _table(known)


def logs(job: JobArgument, address: AddressOption = ADDRESS, follow: FollowOption = False) -> None:
    """Print what a job has printed; with --follow end as the job does."""
    with explained():
        from pipelines.submission.job import find

        cluster = Cluster(address)
        name = find(job, cluster.known()).name
        if follow:
            raise typer.Exit(_follow(cluster, name, address))
        typer.echo(cluster.lines(name), nl=False)


def stop(job: JobArgument, address: AddressOption = ADDRESS) -> None:
    """Tell a job to end, as Ctrl-C does: what is finished is kept, the same command goes on."""
    with explained():
        from pipelines.submission.job import WAIT, find

        cluster = Cluster(address)
        found = find(job, cluster.known())
        if found.over or not cluster.stop(found.name):
            typer.echo(f"{found.name} had ended before: {found.state}")
            return
        if found.stop_s is None:
            typer.secho(
                f"stepwiser: {found.name} was submitted without {WAIT}: Ray kills it after 3 "
                "seconds, and engines end by themselves a little later",
                fg="yellow",
                err=True,
            )
        typer.echo(f"{found.name} was told to end, and has {found.stop_s or 3} s for it …")
        while not (state := cluster.one(found.name)).over:
            time.sleep(1)
        took = (state.ended or time.time()) - (found.started or 0.0)
        from pipelines.monitoring.formatting import duration

        typer.echo(f"{found.name}: {state.state} after {duration(took)}")


def _follow(cluster: Cluster, name: str, address: str) -> int:
    """Print a job's lines; returns its exit code, or 1 where it has none and did not succeed."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        job = cluster.follow(name, write)
    except KeyboardInterrupt:
        typer.secho(
            f"\nstepwiser: {name} goes on; `stepwiser stop {name}{_at(address)}` ends it",
            fg="yellow",
            err=True,
        )
        return 130
    typer.secho(f"{name}: {job.state}", bold=True, err=True)
    if job.state == "SUCCEEDED":
        return 0
    if job.exit_code is None and job.message:
        typer.secho(f"stepwiser: {job.message}", fg="red", err=True)
    return job.exit_code or 1


def _words(given: typer.Context, config: str | None) -> list[str]:
    """The options and overrides that were given, the scenario by its place over there."""
    from stepwiser.errors import UserError

    options: list[str] = []
    rest: list[str] = []
    for parameter in given.command.params:
        value = given.params.get(parameter.name or "")
        if value is None or value is False or value == parameter.default:
            continue
        if parameter.param_type_name == "argument":
            rest += value
        elif parameter.name == "config":
            options += ["--config", str(config)]
        elif isinstance(value, Path) and not value.is_absolute():
            raise UserError(f"{parameter.opts[-1]} {value}: give a whole path that all nodes have")
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                options += [parameter.opts[0], *([] if one is True else [str(one)])]
    return [*options, *rest]


def _table(known: Sequence[Known]) -> None:
    from pipelines.monitoring.formatting import duration, titled_table
    from pipelines.monitoring.progress import make_console

    table = titled_table(
        "Jobs", "job", "state", "stages", "run", "started", "took",
        left=("job", "state", "stages", "run"),
    )  # fmt: skip
    now = time.time()
    for one in known:
        began = one.started or now
        state = one.state + (f" ({one.exit_code})" if one.exit_code else "")
        stages = ", ".join(one.stages) + (f" {one.part}" if one.part else "")
        table.add_row(
            one.name,
            state,
            stages or "-",
            one.run or "-",
            f"{duration(now - began)} ago",
            duration((one.ended or now) - began),
        )
    make_console().print(table)


def _at(address: str) -> str:
    return "" if address == ADDRESS else f" --address {address}"


def _cache() -> Path:
    """Where what travels is put together, a folder for each run and command."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "stepwiser" / "jobs"
