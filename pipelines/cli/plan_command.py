"""`stepwiser plan`: what annotation costs, and what a run needs of which machines, on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.words import explained, place


def plan(
    stage: Annotated[str, typer.Argument(help="`annotate`, the stage whose cost matters.")],
    model: Annotated[
        str | None, typer.Option(help="Size of the policy: 7B, 0.5B; default the run's.")
    ] = None,
    gpus: Annotated[str, typer.Option(help="How many of which: A100, H100 or H200.")] = "8xA100",
    run: Annotated[
        Path | None,
        typer.Option(parser=place, help="Take the work and a rate from this run directory."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Tokens/s that one of these GPUs gives with this model.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Dollars per GPU-hour; default a stated assumption.")
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
    """Estimate tokens, GPU-hours and dollars of an annotation, and say what was assumed."""
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
        print_cost(stage, model, gpus, run, rate, price, known)
