"""`stepwiser plan train`, and `plan` of a scenario: which process on which card, and its memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipelines.monitoring.formatting import titled_table
from pipelines.monitoring.progress import make_console
from pipelines.session.memory_table import folder_here
from stepwiser.annotation import cost
from stepwiser.config import RunConfig, load_config
from stepwiser.errors import UserError
from stepwiser.run.memory import layout, remedies
from stepwiser.run.memory.layout import Layout, Seat
from stepwiser.run.memory.machines import Machines
from stepwiser.run.memory.model_size import QWEN, ModelSize, known_size, read_model_size

SCENARIO = Path(__file__).resolve().parents[2] / "configs" / "paper-7b.yaml"
"""Whose numbers are planned with where no scenario is given."""


def plan_layout(
    stage: str, config: Path | None, model: str | None, machines: Machines
) -> tuple[ModelSize, float]:
    """Print where a stage's processes lie, and what their cards hold; returns the model's size and
    the share of the cards that spot nodes may have, which is what no learner is on.

    Without a scenario the settings are looked for, and printed.

    Raises UserError for a model whose size is not known, and where the stage does not fit, with the
    settings or the machines on which it does.
    """
    chosen = load_config(config or SCENARIO)
    size, name = _size(chosen, stage, model)
    found = layout.lay_out(chosen, stage, size, machines)
    settings: list[remedies.Setting] = []
    if config is None or found.problems:
        fitting = layout.what_fits(chosen, stage, size, machines)
        if config is not None or fitting is None or fitting[0] != machines:
            why = "" if config is None else f": {'; '.join(found.problems)}"
            raise UserError(_refusal(f"{stage} of {name}", why, machines, fitting))
        settings = fitting[1]
        changed = remedies.with_settings(chosen, [stage], settings)
        assert changed is not None, "it was tried"
        chosen, found = changed, layout.lay_out(changed, stage, size, machines)
    console = make_console()
    _print_seats(console, chosen, found, name)
    _print_cards(console, found)
    if settings:
        console.print(f"settings: {_written(settings)}", highlight=False, soft_wrap=True)
    learners = {(seat.node, card) for seat in found.seats if seat.role == "learner"
                for card in seat.cards}  # fmt: skip
    return size, 1 - len(learners) / machines.gpus


def print_training_cost(
    config: Path | None, parameters: float, machines: Machines, on_spot: float,
    rate: float | None, prices: Sequence[cost.Figure],
) -> None:  # fmt: skip
    """Hours and dollars of the scenario's training, at the rates that are known.

    ``on_spot``: share of the cards that engines have, which may be on spot nodes.
    """
    train = load_config(config or SCENARIO).train
    judgements = float(train.steps * train.prompts_per_step * train.group_size)
    rates = [cost.PAPER_JUDGEMENTS]
    if rate is not None:
        rates.insert(0, cost.Rate("given", rate, None, None, "--rate"))
    paid = {
        "dollars": prices[0].value,
        "engines on spot": (1 - on_spot) * prices[0].value + on_spot * prices[1].value,
    }
    columns = ("rate", "judgements/s a GPU", "hours", "GPU-hours", *paid, "from")
    title = f"Cost of {train.steps:,} steps, {judgements:,.0f} judgements"
    table = titled_table(title, *columns, left=("rate", "from"))
    for one in rates:
        each = one.on(parameters, machines.card.name)
        hours = judgements / (each * machines.gpus) / 3600
        dollars = [f"{hours * machines.gpus * price:,.0f}" for price in paid.values()]
        numbers = [f"{each:,.3g}", f"{hours:,.1f}", f"{hours * machines.gpus:,.0f}"]
        table.add_row(one.name, *numbers, *dollars, one.source)
    make_console().print(table)


def _size(config: RunConfig, stage: str, model: str | None) -> tuple[ModelSize, str]:
    """Of the size that was given, else of the scenario's model."""
    if model is not None:
        if model.upper() not in QWEN:
            raise UserError(
                f"--model {model}: where processes lie is known for {', '.join(QWEN)}; of another "
                "model give a scenario whose model is on this machine (-c)"
            )
        return QWEN[model.upper()], model.upper()
    name = (config.judge_model or config.policy_model) if stage == "train" else config.policy_model
    folder = folder_here(name)
    size = (read_model_size(folder) if folder else None) or known_size(name)
    if size is None:
        raise UserError(f"the size of {name} is not known here: give --model (7B)")
    return size, name


def _refusal(
    what: str, why: str, machines: Machines,
    fitting: tuple[Machines, list[remedies.Setting]] | None,
) -> str:  # fmt: skip
    words = f"{what} does not fit on {machines}{why}; "
    if fitting is None:
        return (
            f"{words}nor on up to {layout.MOST_NODES} such machines: take larger cards, or more of "
            "them in a machine"
        )
    where, settings = fitting
    there = "" if where == machines else f"on {where} "
    return f"{words}it fits {there}with {_written(settings)}"


def _written(settings: Sequence[remedies.Setting]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in settings)


def _print_seats(console: Console, config: RunConfig, found: Layout, name: str) -> None:
    console.print(f"Stage {found.stage} of {name} on {found.machines}", style="italic")
    columns = ("machine", "process", "cards")
    table = titled_table("", *columns, left=columns)
    table.title = None
    alike: dict[str, list[int]] = defaultdict(list)
    for node in range(found.machines.nodes):
        here = [seat for seat in found.seats if seat.node == node]
        alike["\n".join(_rows(here))].append(node + 1)
    for rows, nodes in alike.items():
        for row in rows.splitlines() or ["-|-"]:
            table.add_row(_span(nodes), *row.split("|"))
    console.print(table)
    engine, learner = config.engine, config.learner
    roles = [seat.role for seat in found.seats]
    words = [
        f"engines: {sum(role != 'learner' for role in roles)} of {engine.gpus:g} GPU, tensor "
        f"parallel {engine.tensor_parallel_size}"
    ]
    if "learner" in roles:
        trained = f"adapters of rank {learner.lora.rank}" if learner.lora.rank else "all weights"
        words.append(
            f"learner: {roles.count('learner')} ranks of {learner.gpus:g} GPU, data parallel, "
            f"ZeRO-{learner.zero_stage} without offload, {trained}"
            + (", turns with engines" * config.train.colocated)
        )
    console.print("; ".join(words), highlight=False, soft_wrap=True)


def _rows(seats: Sequence[Seat]) -> list[str]:
    roles: dict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        roles[seat.role].append(seat)
    rows = []
    for role, held in roles.items():
        cards = " ".join("+".join(map(str, seat.cards)) or "none" for seat in held)
        rows.append(f"{len(held)} x {role}|{cards}")
    return rows


def _span(nodes: Sequence[int]) -> str:
    return str(nodes[0]) if len(nodes) == 1 else f"{nodes[0]} to {nodes[-1]}"


def _print_cards(console: Console, found: Layout) -> None:
    columns = ("on a card", "GB", "of", "sum")
    table = titled_table("Memory of a card", *columns, left=("on a card", "sum"))
    for line in found.lines:
        parts = " + ".join(f"{name} {size / 1e9:.1f}" for name, size in line.parts.items() if size)
        table.add_row(line.role, f"{line.needed / 1e9:.1f}", f"{line.limit / 1e9:.1f}", parts)
    console.print(table)
    for line in found.lines:
        if line.sequences is not None:
            few = ", few for an engine" if line.sequences < layout.ENOUGH else ""
            console.print(
                f"what is left of an engine's share holds {line.sequences:.1f} sequences of the "
                f"longest kind{few}",
                highlight=False,
                soft_wrap=True,
            )
