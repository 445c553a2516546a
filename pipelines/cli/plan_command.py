"""`stepwiser plan`: what annotation costs, and what a run needs of which machines, on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.words import explained, place, run_place


def plan(
    stage: Annotated[str, typer.Argument(help="`annotate` or `train`, which cost most.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", parser=place, metavar="PATH", help="Scenario to place on the GPUs."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Size of the policy: 7B, 0.5B; default the run's.")
    ] = None,
    gpus: Annotated[
        str,
        typer.Option(
            help="8xA100, or machines x cards: 4x8xA100-40GB; of A100, A100-40GB, H100, H200."
        ),
    ] = "8xA100",
    run: Annotated[
        str | None,
        typer.Option(
            parser=run_place,
            metavar="RUN",
            help="Take the work and a rate from this run directory.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Tokens/s (train: judgements/s) that one of these GPUs gives with this model."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Dollars per GPU-hour; default a stated assumption.")
    ] = None,
    spot_price: Annotated[
        float | None, typer.Option(help="The same of GPUs that can be taken back.")
    ] = None,
    problems: Annotated[float | None, typer.Option(help="Problems to sample.")] = None,
    responses: Annotated[float | None, typer.Option(help="Responses of a problem.")] = None,
    kept_share: Annotated[
        float | None, typer.Option(help="Share of problems neither all right nor all wrong.")
    ] = None,
    trajectories: Annotated[
        float | None, typer.Option(help="Trajectories of a kept problem.")
    ] = None,
    chunks: Annotated[float | None, typer.Option(help="Chunks of a trajectory.")] = None,
    rollouts: Annotated[float | None, typer.Option(help="Planned rollouts of a prefix.")] = None,
    rollout_share: Annotated[
        float | None,
        typer.Option(help="Share of the rollouts that annotate.stopping makes; fixed: 1."),
    ] = None,
    response_tokens: Annotated[float | None, typer.Option(help="Tokens of a response.")] = None,
    rollout_tokens: Annotated[float | None, typer.Option(help="Tokens of a rollout.")] = None,
) -> None:
    """Say what annotation or training costs, and which process lies on which GPU.

    Arithmetic: nothing is started, and every figure has its source. A scenario that does not fit is
    refused with what does.
    """
    options = {
        "problems": problems,
        "responses": responses,
        "kept_share": kept_share,
        "trajectories": trajectories,
        "chunks": chunks,
        "rollouts": rollouts,
        "rollout_share": rollout_share,
        "response_tokens": response_tokens,
        "rollout_tokens": rollout_tokens,
    }
    with explained():
        from pipelines.cli.cost_command import print_cost

        known = {name: value for name, value in options.items() if value is not None}
        print_cost(stage, config, model, gpus, run, rate, (price, spot_price), known)
