"""`stepwiser plan`: the cost on paper, with everything it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from pipelines.cli.layout_command import plan_layout, print_training_cost
from pipelines.monitoring.formatting import titled_table
from pipelines.monitoring.progress import make_console
from stepwiser.annotation import cost
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.prompting.hub.cache import snapshot
from stepwiser.prompting.hub.reference import HubModel
from stepwiser.run.memory.machines import parse_machines
from stepwiser.run.store import RunStore

DEFAULT_MODEL = "7B"


def print_cost(
    stage: str,
    config: Path | None,
    model: str | None,
    gpus: str,
    run: str | None,
    tokens_per_s: float | None,
    prices: tuple[float | None, float | None],
    overrides: Mapping[str, float],
) -> None:
    """Print where the processes lie, the work, and its cost at every rate that is known.

    ``prices``: dollars of a GPU-hour on demand and on spot nodes; None for what is assumed.

    Raises UserError for a stage other than annotate and train, a size, GPU or figure that makes no
    sense, what does not fit, or a run that has not annotated.
    """
    if stage not in ("annotate", "train"):
        raise UserError(f"plan knows the stages annotate and train only, not {stage}")
    assumed = (cost.DOLLARS_PER_GPU_HOUR, cost.DOLLARS_ON_SPOT)
    dollars = [
        default if given is None else cost.Figure(given, "given")
        for default, given in zip(assumed, prices, strict=True)
    ]
    try:
        machines = parse_machines(gpus)
        count, gpu = machines.gpus, machines.card.name
        work, rates, own = cost.PAPER_WORK, [cost.PAPER_RATE, cost.H100_RATE], None
        if run is not None:
            work, rate, own = _of_run(run, gpu)
            rates = [*([rate] if rate else []), *rates]
        if tokens_per_s is not None:
            if tokens_per_s <= 0:
                raise ValueError(f"--rate must be above 0, got {tokens_per_s:g}")
            rates = [cost.Rate("given", tokens_per_s, None, None, "--rate"), *rates]
        parameters = (
            cost.parse_parameters(model) if model else own or cost.PARAMETERS[DEFAULT_MODEL]
        )
        work = cost.with_values(work, overrides)
    except ValueError as error:
        raise UserError(str(error)) from error
    if stage == "train" or config is not None:
        size, on_spot = plan_layout(stage, config, model, machines)
        parameters = size.parameters
    if stage == "train":
        print_training_cost(config, parameters, machines, on_spot, tokens_per_s, dollars)
        _print_sources(dollars)
        return
    _print_work(work)
    _print_rates(work, rates, parameters, count, gpu, dollars)


def _of_run(run: str, gpu: str) -> tuple[cost.Work, cost.Rate | None, float | None]:
    """Work and rate of a run, and the parameters of its policy where they can be counted."""
    store = RunStore(run)
    config = store.config()
    metrics = store.read_metrics("annotate")
    if metrics is None or not metrics.keys() >= {"counts", "rollouts_per_prefix"}:
        raise UserError(f"{run} has no metrics/annotate.json yet: run `stepwiser annotate` first")
    # Of a run at an address they are not worth fetching all weights.
    own = None if store.remote else cost.parameters_of(store.model_dir("policy"))
    parameters = own or _parameters(store, config)
    measured = store.read_metrics("cost-annotate") or {}
    name = store.place.rstrip("/").rpartition("/")[2]
    try:
        work = cost.work_of_run(metrics["counts"], metrics["rollouts_per_prefix"], name)
    except ZeroDivisionError:
        raise UserError(f"{run} has counted no finished work yet: annotate more of it") from None
    return work, cost.rate_of_run(metrics["counts"], measured, parameters, gpu, name), parameters


def _parameters(store: RunStore, config: RunConfig) -> float | None:
    """Of the policy as it came, where this machine has it; asks nobody."""
    recorded = store.models().get("policy_model")
    if recorded:
        folder = snapshot(HubModel(recorded["name"], recorded["commit"]))
    else:
        folder = Path(config.policy_model).expanduser()
    return cost.parameters_of(folder) if folder else None


def _print_work(work: cost.Work) -> None:
    table = titled_table("Work", "figure", "value", "from", left=("figure", "from"))
    for field in fields(work):
        figure = getattr(work, field.name)
        words = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:.4g}"
        table.add_row(field.name.replace("_", " "), words, figure.source)
    table.add_section()
    for name, value, how in (
        ("responses sampled", work.sampled_responses, "problems x responses"),
        (
            "prefixes rolled out",
            work.prefixes,
            "problems x kept share x trajectories x (chunks - 1) x distinct share",
        ),
        ("rollouts", work.sampled_rollouts, "prefixes x rollouts x rollout share"),
        ("tokens", work.tokens, "responses and rollouts, each times its mean tokens"),
    ):
        table.add_row(name, _large(value), how)
    make_console().print(table)


def _print_rates(
    work: cost.Work,
    rates: list[cost.Rate],
    parameters: float,
    count: int,
    gpu: str,
    dollars: Sequence[cost.Figure],
) -> None:
    title = f"Cost with a model of {parameters / 1e9:.3g}B on {count} x {gpu}"
    columns = ("rate", "tokens/s a GPU", "GPU-hours", "days", "dollars", "spot", "from")
    table = titled_table(title, *columns, left=("rate", "from"))
    for rate in rates:
        expected = cost.estimate(work, rate, parameters, count, gpu, dollars[0].value)
        table.add_row(
            rate.name,
            f"{expected.tokens_per_s_per_gpu:,.0f}",
            f"{expected.gpu_hours:,.4g}"
            if expected.gpu_hours < 1000
            else f"{expected.gpu_hours:,.0f}",
            f"{expected.days:,.3g}",
            f"{expected.dollars:,.0f}",
            f"{expected.gpu_hours * dollars[1].value:,.0f}",
            rate.source,
        )
    make_console().print(table)
    _print_sources(dollars)


def _print_sources(dollars: Sequence[cost.Figure]) -> None:
    for line in (
        "A rate is scaled by parameters (inversely) and by the GPUs' memory bandwidth: assumed.",
        f"${dollars[0].value:g} per GPU-hour: {dollars[0].source}.",
        f"${dollars[1].value:g} on spot nodes: {dollars[1].source}.",
        "Starting engines, idle tails and failures are not counted.",
    ):
        make_console().print(line, highlight=False, soft_wrap=True)


def _large(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.4g} {name}"
    return f"{value:,.0f}"
