"""Between a person and a command: places as they are typed, and errors as they are said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def place(text: str) -> Path:
    """A path as it is typed; an address is none, and never a folder that is called so."""
    from stepwiser.config.addresses import local_path
    from stepwiser.errors import UserError

    try:
        return local_path("value", text)
    except UserError as error:
        raise typer.BadParameter(str(error).removeprefix("value=")) from None


def run_place(text: str) -> str:
    """A run directory as it is typed: a path, or the address of one."""
    from stepwiser.config.addresses import object_address
    from stepwiser.errors import UserError

    try:
        return object_address(text) or str(place(text))
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        parser=place,
        metavar="PATH",
        help="Scenario; default configs/embedded.yaml.",
    ),
]
ShardOption = Annotated[
    str | None, typer.Option(help="i/n: only every n-th unit, from the i-th (from 0).")
]
JoinOption = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        parser=run_place,
        help="Work on this run too, by its config save cluster.*.",
    ),
]
"""How several clusters share the stage `annotate`."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what a user can cause into a message and an exit code."""
    from stepwiser.errors import UserError

    try:
        yield
    except UserError as error:
        typer.secho(f"stepwiser: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho(
            "stepwiser: interrupted; finished work is kept, start the same command to go on",
            fg="yellow",
            err=True,
        )
        raise typer.Exit(130) from None
