"""The `stepwiser` command. Heavy imports happen inside a command: `--help` stays instant."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from pipelines.cli.jobs_commands import (
    AddressOption,
    AlongOption,
    EnvOption,
    FollowOption,
    jobs,
    logs,
    own_words,
    stop,
)
from pipelines.cli.keys_command import keys
from pipelines.cli.plan_command import plan
from pipelines.cli.words import (
    ConfigOption,
    JoinOption,
    ShardOption,
    explained,
    place,
    run_place,
)
from pipelines.submission.jobs_api import ADDRESS

if TYPE_CHECKING:
    from stepwiser.config import RunConfig

STAGE_HELP = {
    "segment": "Cut the policy's solutions into chunks and teach the policy to do it.",
    "annotate": "Value every chunk by Monte-Carlo rollouts.",
    "label": "Turn values into balanced, labelled judge prompts.",
    "train": "Train the judge as train.method says, and the discriminative baseline by SFT.",
    "evaluate": "Score the judges: ProcessBench, Maj@k, calibration.",
    "solve": "Solve problems by search with the judge, by plain sampling and by majority vote.",
    "select": "Pick training answers by mean chunk score.",
    "finetune": "Fine-tune the policy on each pick and compare.",
    "report": "Write report.html from what has run so far.",
}
"""The stages of the quickstart, in its order; each is a module of `pipelines.stages`."""
STAGES = tuple(STAGE_HELP)
EPILOG = "Overrides are key=value, e.g. `train.steps=20 run_dir=runs/mine`."

_python_shows = warnings.showwarning

app = typer.Typer(
    help="Train and use generative judges of reasoning steps, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


SkipOption = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="Leave rows out that cannot be read, and list them."),
]
SKIP = tuple(f"{name}.skip_bad_rows=true" for name in ("data", "evaluation_data", "evaluate"))
PlanOption = Annotated[bool, typer.Option("--plan", help="Print the resource plan and stop.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", parser=run_place, help="Run directory, or its address.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value overrides.")]


def _configs_dir() -> Path:
    return Path(__file__).resolve().parents[2] / "configs"


def _load(config: Path | None, overrides: list[str] | None) -> RunConfig:
    from stepwiser.config import load_config
    from stepwiser.config.aliases import RenamedKeyWarning

    # Whatever PYTHONWARNINGS says of the warnings of programs: this one is for a person.
    warnings.simplefilter("always", RenamedKeyWarning)
    return load_config(config or _configs_dir() / "embedded.yaml", overrides or [])


def _run(
    stages: tuple[str, ...],
    config: Path | None,
    overrides: list[str] | None,
    plan: bool,
    skip: bool = False,
    join: str | None = None,
) -> None:
    """Run stages in one session; ``join``: of a run that was begun elsewhere."""
    with explained():
        from pipelines.cli.joined_config import joined_config
        from stepwiser.config.impossible import refuse_impossible

        given = [*(overrides or []), *(SKIP if skip else ())]
        settings = _load(config, given) if join is None else joined_config(join, config, given)
        refuse_impossible(settings, str(config or "configs/embedded.yaml"), stages)
        if plan:
            from pipelines.session.plan_table import print_plan

            raise typer.Exit(0 if print_plan(settings, stages) else 1)
        from pipelines.stages.runner import run_stages

        run_stages(settings, stages, joins=join is not None)


def _add_stage(name: str) -> None:
    def command(
        config: ConfigOption = None,
        overrides: Overrides = None,
        plan: PlanOption = False,
        skip: SkipOption = False,
    ) -> None:
        _run((name,), config, overrides, plan, skip)

    app.command(name, help=STAGE_HELP[name], epilog=EPILOG)(command)


def _annotate(
    config: ConfigOption = None,
    overrides: Overrides = None,
    plan: PlanOption = False,
    shard: ShardOption = None,
    join: JoinOption = None,
    skip: SkipOption = False,
) -> None:
    """A stage that several clusters can share."""
    given = [*(overrides or []), *([f"cluster.shard={shard}"] if shard is not None else [])]
    _run(("annotate",), config, given, plan, skip, join)


for _name in STAGES:
    if _name == "annotate":
        app.command(_name, help=STAGE_HELP[_name], epilog=EPILOG)(_annotate)
    else:
        _add_stage(_name)


@app.command(epilog=EPILOG)
def quickstart(
    config: ConfigOption = None,
    overrides: Overrides = None,
    plan: PlanOption = False,
    skip: SkipOption = False,
    stages: Annotated[
        str | None, typer.Option(help="Some of the stages, as annotate,label,train; default all.")
    ] = None,
) -> None:
    """Run the whole method, or some stages of it, one after the other and write its report."""
    _run(_chosen(stages), config, overrides, plan, skip)


def _chosen(stages: str | None) -> tuple[str, ...]:
    """In the order in which they follow each other, however they were named."""
    named = STAGES if stages is None else [name.strip() for name in stages.split(",")]
    if unknown := [name for name in named if name not in STAGES]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is no stage; they are {', '.join(STAGES)}", param_hint="--stages"
        )
    return tuple(name for name in STAGES if name in named)


@app.command(epilog=EPILOG)
def ablate(
    config: ConfigOption = None,
    overrides: Overrides = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions; default ablate.seeds.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Arm to run, may be repeated; default all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=place, help="Folder that gets a copy of the table and plots."),
    ] = None,
) -> None:
    """Train every arm of ablate.arms on several seeds and compare them."""
    with explained():
        more = [] if seeds is None else [f"ablate.seeds={seeds}"]
        chosen = config or _configs_dir() / "ablate-embedded.yaml"
        settings = _load(chosen, [*(overrides or []), *more])
        from pipelines.stages.ablate import run_ablation

        run_ablation(settings, only or [], out)


@app.command(epilog=EPILOG)
def serve(
    config: ConfigOption = None, overrides: Overrides = None, plan: PlanOption = False
) -> None:
    """Put the trained judge behind HTTP on Ray Serve."""
    _run(("serve",), config, overrides, plan)


@app.command(epilog=EPILOG)
def judge(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", parser=place, help="Solutions, one a row: labelled, in steps or whole."
        ),
    ],
    overrides: Overrides = None,
    config: ConfigOption = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=place, help="JSON lines to write; default FILE.judged.jsonl."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Let a server judge (`stepwiser serve`); starts nothing."),
    ] = None,
    votes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Of a step; default serve.votes.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Of the votes; default the judge's.")
    ] = None,
    skip: SkipOption = False,
    plan: PlanOption = False,
) -> None:
    """Judge every step of a file's solutions: by the run's judge, serve.model, or a server.

    A start that was ended goes on where it was. Ends with 1 where a row could not be judged, unless
    --skip-bad-rows.
    """
    if plan:
        _run(("judge",) if address is None else (), config, overrides, plan)
    with explained():
        from pipelines.cli.judge_command import judge_solutions
        from pipelines.evaluation.file_judging import JudgeJob

        found = out or source.with_name(f"{source.stem}.judged.jsonl")
        job = JudgeJob(source, found, votes, temperature, skip)
        rejected = judge_solutions(job, _load(config, overrides), address)
        raise typer.Exit(1 if rejected and not skip else 0)


@app.command()
def export(
    run: RunArgument,
    form: Annotated[str, typer.Option("--format", help="hf, trl or math-shepherd.")],
    out: Annotated[
        Path, typer.Option(parser=place, help="Folder (hf) or JSON-lines file to write.")
    ],
    rule: Annotated[
        str | None,
        typer.Option(help="abs_q, rel_effective or rel_ratio; default the run's label.rule."),
    ] = None,
) -> None:
    """Write the labelled trajectories of a run for other libraries."""
    with explained():
        from pipelines.cli.run_commands import export_run

        export_run(run, form, out, rule)


@app.command()
def merge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=place, help="Run directories.")
    ],
    out: Annotated[Path, typer.Option(parser=place, help="Run directory to make, or to add to.")],
) -> None:
    """Join run directories of the same config, such as its shards."""
    with explained():
        from pipelines.cli.run_commands import merge_runs

        merge_runs(runs, out)


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how far the annotation of a run is; reads its directory and disturbs nobody."""
    with explained():
        from pipelines.cli.run_commands import show_status

        show_status(run, as_json)


@app.command(
    epilog=EPILOG, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def submit(
    context: typer.Context,
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND [ITS OPTIONS] [OVERRIDES]",
            help="A stage, quickstart, ablate or serve, with what it takes itself.",
        ),
    ],
    address: AddressOption = ADDRESS,
    env: EnvOption = None,
    along: AlongOption = None,
    follow: FollowOption = False,
) -> None:
    """Run a command as a job of a cluster; the same command again goes on where it was."""
    if command not in (*STAGES, "quickstart", "ablate", "serve"):
        known = f"{', '.join(STAGES)}, quickstart, ablate or serve"
        raise typer.BadParameter(f"{command!r} is none of {known}", param_hint="COMMAND")
    with explained():
        from pipelines.cli.jobs_commands import Errand, submit_job
        from stepwiser.config.impossible import refuse_impossible

        given = own_words(context, command, context.args)
        named = given.params
        stages = _chosen(named["stages"]) if command == "quickstart" else (command,)
        keys = {"cluster.shard": named.get("shard"), "run_dir": named.get("join")}
        more = [f"{key}={value}" for key, value in keys.items() if value]
        default = "ablate-embedded" if command == "ablate" else "embedded"
        chosen = named["config"] or _configs_dir() / f"{default}.yaml"
        skip = SKIP if named.get("skip") else ()
        settings = _load(chosen, [*(named["overrides"] or []), *skip, *more])
        refuse_impossible(settings, str(chosen), stages)
        job = Errand(command, stages, settings, given)
        raise typer.Exit(submit_job(job, address, env or [], along or [], follow))


for _command in (jobs, logs, stop):
    app.command()(_command)


data = typer.Typer(help="Look at data before it is used; starts nothing.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command(epilog=EPILOG)
def check(
    source: Annotated[str, typer.Argument(help="File, known name or Hub name; as data.source.")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", parser=place, metavar="PATH", help="Scenario; else none."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Problems whose answers are verified.")] = 1000,
    examples: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 10,
) -> None:
    """Say what was understood, which rows are refused and why, and what a model will see.

    Ends with 1 where a row cannot be read: a stage would end there without --skip-bad-rows.
    """
    with explained():
        from pipelines.cli.data_command import check_data
        from stepwiser.config import load_config

        settings = load_config(config, overrides or [])
        raise typer.Exit(0 if check_data(settings, source, rows, examples) else 1)


app.add_typer(keys, name="keys")
app.command()(plan)


@app.command()
def version() -> None:
    """Print the version."""
    from stepwiser import __version__

    typer.echo(__version__)


def main() -> None:
    """Entry point: quiet third parties down before anything imports them."""
    for key, value in {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(key, value)
    warnings.showwarning = _show_warning
    sys.exit(app())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What a person should change, without the line of our code that says so."""
    from stepwiser.config.aliases import RenamedKeyWarning

    if issubclass(category, RenamedKeyWarning):
        typer.secho(f"stepwiser: {message}", fg="yellow", err=True)
    else:
        _python_shows(message, category, filename, lineno, file, line)
