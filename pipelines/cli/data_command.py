"""`stepwiser data check`: what the loaders make of a source. No Ray, no engine, no run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.monitoring.formatting import facts_table, titled_table
from pipelines.monitoring.progress import make_console
from stepwiser.config import DataConfig, RunConfig
from stepwiser.config.addresses import local_path
from stepwiser.data.cells import SYSTEM, cell, has, message
from stepwiser.data.files import BadRow, FileRow, Rejected, is_table, read_rows
from stepwiser.data.presets import with_preset
from stepwiser.data.sources import (
    ProblemSet,
    RawProblem,
    choose_problems,
    load_problems,
    raw_problems,
)
from stepwiser.data.step_formats import format_of
from stepwiser.data.step_items import read_step_items
from stepwiser.data.verifiers import make_checker
from stepwiser.errors import UserError
from stepwiser.prompting.prompt_format import PromptFormat

NAMED = 5
"""Rows that are named for each reason."""


def check_data(config: RunConfig, source: str, rows: int, examples: int) -> bool:
    """Print what a source gives; False where a stage would end at a row that cannot be read.

    Args:
        source: as `data.source`, or a file with labelled steps, as `evaluate.source`.
        rows: problems whose reference answers are verified; every row is read in any case.
        examples: how many are shown.

    Raises UserError where nothing of it is usable.
    """
    source = _local(source)
    path = Path(source).expanduser()
    found = read_rows(path) if is_table(path) else []
    if format_of([row.value for row in found if not row.problem]) is not None:
        return _check_steps(config, source, examples)
    return _check_problems(config, source, rows, examples)


def _local(source: str) -> str:
    return str(local_path("SOURCE", source)) if ":/" in source else source


def _check_problems(config: RunConfig, source: str, rows: int, examples: int) -> bool:
    data = config.data.model_copy(
        update={"source": source, "limit": rows, "offset": 0, "skip_bad_rows": True}
    )
    checker = make_checker(config.answer_checker, config.check_timeout_s)
    raw: list[RawProblem] = []
    try:
        if source == "embedded":
            loaded = load_problems(data, checker)
        else:
            data = with_preset(data)
            raw = raw_problems(data)
            loaded = choose_problems(data, raw, checker)
    finally:
        checker.close()
    console = make_console()
    console.print(facts_table(_understood(source, data, raw, loaded), f"{source}: problems"))
    bad = {one.row.index for one in raw if one.problem}
    _print_rejected(console, loaded.rejected, bad)
    see = _reader(config, source, console)
    for number, problem in enumerate(loaded.problems[:examples], start=1):
        console.rule(f"example {number} of {min(examples, len(loaded.problems))}", align="left")
        text = config.prompts.policy.format(problem=problem.question)
        _print_text(console, see(partial(_policy_ids, problem.question), text))
        _print_text(console, f"reference answer: {problem.answer}", style="green")
    return not bad


def _understood(
    source: str, data: DataConfig, raw: Sequence[RawProblem], loaded: ProblemSet
) -> list[tuple[str, object]]:
    whole = [one.row for one in raw if not one.row.problem]
    columns = sorted({str(name) for row in whole[:1000] for name in row.value})
    answer = f"column {data.answer_column}"
    if data.answer_delimiter is not None:
        answer += f", what follows the last {data.answer_delimiter!r}"
    facts: list[tuple[str, object]] = [("rows", f"{loaded.rows:,}")]
    if raw:
        facts += [
            ("columns", ", ".join(columns)),
            ("problem", f"column {data.problem_column}{_messages(whole, data.problem_column)}"),
            ("answer", f"{answer}; of a whole solution its last \\boxed{{}}"),
        ]
    if raw and data.source != source:
        facts.append(("known as", f"{data.source}, subset {data.subset}, split {data.split}"))
    looked = len(loaded.problems) + len(loaded.rejected)
    return [
        *facts,
        ("looked at", f"{looked:,} (all are read; answers are verified up to --rows problems)"),
        ("accepted", f"{len(loaded.problems):,}"),
        ("refused", f"{len(loaded.rejected):,}"),
    ]


def _messages(rows: Sequence[FileRow], column: str) -> str:
    """What is to be known of a column with messages."""
    lists = [
        value
        for row in rows
        if has(row.value, column) and isinstance(value := cell(row.value, column), list)
    ]
    if not lists:
        return ""
    systems = sum(any(_role(one, column) == SYSTEM for one in value) for value in lists)
    words = ", messages: the text of the one user turn"
    if systems:
        words += f"; a system message in {systems:,} rows is left out, prompts.policy says how to "
        words += "answer"
    return words


def _role(value: Any, column: str) -> str:
    try:
        return message(value, column)[0]
    except BadRow:
        return ""


def _check_steps(config: RunConfig, source: str, examples: int) -> bool:
    found = read_step_items(source, None, skip_bad_rows=True)
    items = found.items
    wrong = sum(item.label != -1 for item in items)
    console = make_console()
    facts = [
        ("format", found.form),
        ("rows", f"{len(items) + len(found.rejected):,}"),
        (
            "accepted",
            f"{len(items):,}: {wrong:,} with a wrong step, {len(items) - wrong:,} without",
        ),
        ("final answer right", f"{sum(item.final_answer_correct for item in items):,}"),
        ("steps", f"{sum(len(item.steps) for item in items):,}"),
        ("refused", f"{len(found.rejected):,}"),
    ]
    console.print(facts_table(facts, f"{source}: labelled steps"))
    for words in found.notices:
        _print_text(console, words, style="yellow")
    _print_rejected(console, found.rejected, {one.row for one in found.rejected})
    see = _reader(config, source, console)
    prompts = config.judge_prompts
    for number, item in enumerate(items[:examples], start=1):
        last = len(item.steps) - 1 if item.label == -1 else item.label
        history, chunk = item.steps[:last], item.steps[last]
        written = prompts.history_separator.join(history) or prompts.empty_history
        text = prompts.judge.format(problem=item.problem, history=written, chunk=chunk)
        console.rule(f"example {number}: {item.id}, step {last}", align="left")
        _print_text(console, see(partial(_judge_ids, item.problem, history, chunk), text))
        verdict = "every step is right" if item.label == -1 else f"step {last} is the first wrong"
        _print_text(console, f"label: {verdict}", style="green")
    return not found.rejected


def _print_rejected(console: Console, rejected: Sequence[Rejected], bad: set[int]) -> None:
    """Reasons with how many rows each has, and some of the rows."""
    if not rejected:
        return
    rows: dict[str, list[int]] = {}
    for one in rejected:
        rows.setdefault(one.reason, []).append(one.row)
    counts = Counter({reason: len(found) for reason, found in rows.items()})
    table = titled_table("Refused", "rows", "reason", "which", left=("reason", "which"))
    for reason, count in counts.most_common(20):
        which = ", ".join(map(str, sorted(rows[reason])[:NAMED])) + (
            " ..." if count > NAMED else ""
        )
        table.add_row(f"{count:,}", _plain(reason), which)
    console.print(table)
    if len(counts) > 20:
        console.print(f"and {len(counts) - 20} further reasons")
    if bad:
        _print_text(
            console,
            f"{len(bad)} rows cannot be read: a stage ends there, or leaves them out with "
            "--skip-bad-rows",
            style="yellow",
        )


def _policy_ids(problem: str, prompts: PromptFormat) -> list[int]:
    return prompts.policy_ids(problem)


def _judge_ids(
    problem: str, history: Sequence[str], chunk: str, prompts: PromptFormat
) -> list[int]:
    return prompts.judge_ids(problem, history, chunk)


def _reader(
    config: RunConfig, source: str, console: Console
) -> Callable[[Callable[[PromptFormat], list[int]], str], str]:
    """How a prompt is shown: as the policy's tokens say, or as text where no policy is named."""
    named = config.policy_model != "embedded" or source == "embedded"
    try:
        prompts = (
            PromptFormat.from_model_dir(
                config.policy_model, config.judge_prompts, config.trust_remote_code
            )
            if named
            else None
        )
    except (UserError, OSError, ValueError) as error:
        _print_text(console, f"{config.policy_model} is not here: {error}", style="yellow")
        prompts = None
    if prompts is None:
        console.print(
            "Examples are texts of the template: policy_model=NAME puts them in a model's own.",
            highlight=False,
        )
        return lambda ask, text: text
    found = prompts
    return lambda ask, text: found.decode(ask(found))


def _print_text(console: Console, text: str, style: str | None = None) -> None:
    """What a person wrote, without markup and without wrapping."""
    console.print(_plain(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """No control character of a data set reaches the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
