"""`stepwiser keys`: who may ask a served judge. Heavy imports happen inside a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.words import explained, place

keys = typer.Typer(help="API keys of `stepwiser serve`; starts nothing.", no_args_is_help=True)

FileOption = Annotated[
    Path, typer.Option("--file", parser=place, metavar="PATH", help="The key file: serve.keys.")
]
KEYS_FILE = Path("keys.json")


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits and .@_-")],
    file: FileOption = KEYS_FILE,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Solutions in any 60 seconds; default unlimited.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Solutions judged at a time; default unlimited.")
    ] = None,
) -> None:
    """Make a key and print it, once: the file has only its hash."""
    with explained():
        from serve.access.keys import add_key

        # Alone on standard output, so that a script can take it.
        typer.echo(add_key(file, name, per_minute, concurrency))
    typer.echo(f"stepwiser: key {name} is in {file}; it is shown this once", err=True)


@keys.command("list")
def show(file: FileOption = KEYS_FILE) -> None:
    """Show names, limits and dates."""
    with explained():
        from rich.table import Table

        from pipelines.monitoring.progress import make_console
        from serve.access.keys import read_keys

        table = Table("key", "a minute", "at a time", "since", "revoked", box=None)
        for key in read_keys(file):
            limits = (str(limit) if limit else "any" for limit in (key.per_minute, key.concurrency))
            table.add_row(key.name, *limits, key.created, key.revoked or "")
        make_console().print(table)


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="As it was added.")], file: FileOption = KEYS_FILE
) -> None:
    """Take a key out of use; running servers notice within a second."""
    with explained():
        from serve.access.keys import revoke_key

        revoke_key(file, name)
    typer.echo(f"stepwiser: key {name} is out of use", err=True)
