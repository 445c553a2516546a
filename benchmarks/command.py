"""How a benchmark is called: its options, the parts it measures, and the JSON line it ends with."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

import stepwiser

CONFIG = Path(stepwiser.__file__).resolve().parents[1] / "configs" / "embedded.yaml"
"""What every benchmark starts from."""

Part = Callable[..., dict[str, Any]]
"""Measures into a folder, quickly or in full; returns its figures. Called with a Console, the
folder, whether quickly, and by name with the options of its own."""


def arguments(about: str | None, quick: str, out: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark, the first line of whose docstring says what it is about.

    ``quick``: what --quick leaves; ``out``: the folder of the run directories where --out names
    none, None for a temporary one. Told to end, the program ends as after Ctrl-C from here on, and
    all that it has started with it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--out", default=out, help=f"folder of the run directories; default {out or 'temporary'}"
    )
    return parser


def measure_parts(
    about: str | None,
    parts: Mapping[str, Part],
    out: str,
    options: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Measure the parts that the command line asks for, and print their figures.

    ``options``: by part, what its own are called and what is said of them.
    """
    own = options or {}
    parser = arguments(about, "within five minutes", out)
    parser.add_argument("--only", nargs="+", choices=parts, default=[*parts], metavar="PART")
    for name, about_own in ((n, text) for given in own.values() for n, text in given.items()):
        parser.add_argument(f"--{name}", help=about_own)
    args = parser.parse_args()
    folder = Path(args.out).absolute() / ("quick" if args.quick else "full")
    console = Console()
    figures: dict[str, Any] = {}
    for name in args.only:
        given = {option: getattr(args, option) for option in own.get(name, {})}
        figures |= parts[name](console, folder, args.quick, **given)
    print(json.dumps(figures))
