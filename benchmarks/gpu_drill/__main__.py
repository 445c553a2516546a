"""Every figure of a GPU in fifteen minutes; --dry-run rehearses it on a CPU.

    python -m benchmarks.gpu_drill --model FOLDER --data FOLDER
    python -m benchmarks.gpu_drill --model FOLDER --data FOLDER --parts learner serve --budget 400
    python -m benchmarks.gpu_drill --resume --model FOLDER --data FOLDER
    python -m benchmarks.gpu_drill --dry-run

Parts run one after the other, each in a process of its own that is ended at its time; what one does
not need is the next ones'. In the folder of --out: drill.jsonl (one line a part, written when it
ends), parts/ (figures as they come), logs/, page.md. Nothing is fetched or left running.
The last line is one JSON object; a figure of a part that did not get there is null.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu_drill.figures import read_figures
from benchmarks.gpu_drill.page import Outcome, machine, markdown, results_table, summarize
from benchmarks.gpu_drill.part import PARTS
from benchmarks.gpu_drill.processes import adopt_orphans, end_descendants, environment, run_part
from benchmarks.gpu_drill.rehearsal import write_step_items
from benchmarks.gpu_drill.settings import Drill
from stepwiser.errors import UserError
from stepwiser.run.memory.machine import gpu_memory

SECONDS = {
    "engine": 220.0,
    "weight_sync": 100.0,
    "learner": 80.0,
    "rl": 170.0,
    "serve": 130.0,
    "faults": 140.0,
    "evaluation": 60.0,
}
"""Of each part on one card, loading included."""
LEAST_S = 20.0
"""A part that has less is not begun."""


def main() -> None:
    args = _arguments()
    out = Path(args.out).absolute()
    try:
        drill = _drill(args, out)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    console = Console()
    adopt_orphans()
    # Whoever limits the time of a command says so before the end: what there is is written then.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out.mkdir(parents=True, exist_ok=True)
    settings = out / "drill.json"
    if drill.dry:
        write_step_items(Path(drill.step_items), drill.size.items, drill.seed)
    outcomes = _run(drill, args.parts, args.budget, settings, console)
    summary = summarize(outcomes)
    console.print(results_table(outcomes))
    (out / "page.md").write_text(markdown(drill, machine(), outcomes, summary))
    console.print(f"page: {out / 'page.md'}", highlight=False, soft_wrap=True)
    print(json.dumps(summary))
    if any(one.state in ("failed", "interrupted") for one in outcomes):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_drill",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="folder of the model; 0.5B is what times are meant for")
    parser.add_argument("--data", help="folder with gsm8k/ and processbench/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds of all parts")
    parser.add_argument("--resume", action="store_true", help="keep parts that are done")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with the packaged model")
    parser.add_argument("--out", default="runs/gpu-drill", help="folder; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _drill(args: argparse.Namespace, out: Path) -> Drill:
    """Raises UserError for what cannot run here."""
    if not args.resume and (out / "drill.jsonl").exists():
        raise UserError(
            f"--out {args.out} has the results of an earlier drill: add --resume, or name another"
        )
    if args.dry_run:
        return Drill(str(out), "embedded", None, True, args.seed, 0.0)
    card = gpu_memory()
    if card is None:
        raise UserError("nvidia-smi names no GPU here: add --dry-run to rehearse on a CPU")
    for option, folder, inside in (
        ("--model", args.model, ("config.json",)),
        ("--data", args.data, ("gsm8k/train.jsonl", "processbench/gsm8k.json")),
    ):
        if folder is None:
            raise UserError(f"{option} is missing: the folder with {' and '.join(inside)}")
        if absent := [name for name in inside if not (Path(folder) / name).is_file()]:
            raise UserError(f"{option} {folder} has no {' and no '.join(absent)}")
    model, data = (str(Path(folder).absolute()) for folder in (args.model, args.data))
    return Drill(str(out), model, data, False, args.seed, card)


def _short_folder() -> str:
    """For temporary files; Ray's sockets lie 80 characters below, and paths may have 107."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 107 - 80 else "/tmp"


def _run(
    drill: Drill, parts: list[str], budget: float, settings: Path, console: Console
) -> list[Outcome]:
    """The parts, in order of worth; those that are done already are kept."""
    out = Path(drill.out)
    file = out / "drill.jsonl"
    found = {one.part: one for one in _outcomes(file) if one.state == "done"}
    todo = [name for name in PARTS if name in parts and name not in found]
    saved, began = 0.0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sd-", dir=_short_folder()) as scratch:
        variables = environment(out, Path(scratch), drill.dry)
        for name in todo:
            left = budget - (time.monotonic() - began)
            # A rehearsal has whatever is left: how long it takes says nothing.
            own = left if drill.dry else SECONDS[name]
            limit = min(own + saved, left)
            if limit < LEAST_S:
                found[name] = Outcome(name, "not begun", 0.0, max(0.0, limit), {})
                continue
            console.print(f"{name}: up to {limit:.0f} s …", highlight=False)
            drill.with_seconds(limit).save(settings)
            log = out / "logs" / f"{name}.log"
            started = time.monotonic()
            state: str
            try:
                state = run_part(name, settings, log, variables, limit)
            except KeyboardInterrupt:
                state = "interrupted"
                end_descendants(0.0)  # it may have come while a part was being ended
            seconds = time.monotonic() - started
            saved += own - seconds
            found[name] = Outcome(name, state, round(seconds, 1), limit, read_figures(out, name))
            with file.open("a") as opened:
                opened.write(json.dumps(asdict(found[name])) + "\n")
            if state == "failed":
                console.print(_last_words(log), markup=False)
            if state == "interrupted":
                break
    return [found[name] for name in PARTS if name in found]


def _outcomes(file: Path) -> list[Outcome]:
    rows: list[dict[str, Any]] = []
    if file.is_file():
        rows = [json.loads(text) for text in file.read_text().splitlines()]
    return [Outcome(**row) for row in rows]


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


if __name__ == "__main__":
    main()
