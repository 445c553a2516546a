"""Items that judges are scored on: solutions in labelled steps, from a file of any known format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepwiser.data.files import BadRow, FileRow, Rejected, checked, is_table, read_rows
from stepwiser.data.labelled_solution import LabelledSolution
from stepwiser.data.records import StepItem
from stepwiser.data.step_formats import StepFormat, are_ratings, format_of
from stepwiser.errors import UserError

APART = "~"
"""Between an id that several items have and the number of the item among them, from 2."""


@dataclass(frozen=True)
class StepItemSet:
    """Items of a file, and what was found wrong with it."""

    items: list[StepItem]
    rejected: list[Rejected]
    twice: dict[str, int]
    """Ids that several items have, and how many: all are scored, under ids of their own."""
    form: str
    """Name of the format."""

    @property
    def notices(self) -> list[str]:
        """What a person should know of the ids."""
        return [notice_of(self.twice, "items")] if self.twice else []


def notice_of(twice: Mapping[str, int], what: str) -> str:
    """Names ids that several have."""
    names = ", ".join(f"{name!r} ({count} {what})" for name, count in list(twice.items())[:5])
    more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
    return f"several {what} have one id: {names}{more}; all are used, the second as ID{APART}2"


def load_step_items(source: str, limit: int | None, skip_bad_rows: bool = False) -> list[StepItem]:
    """The items of `read_step_items`."""
    return read_step_items(source, limit, skip_bad_rows).items


def read_step_items(source: str, limit: int | None, skip_bad_rows: bool = False) -> StepItemSet:
    """Items of a file with labelled steps (`step_formats`), in file order.

    A `limit` takes items evenly spaced over the file: ProcessBench puts all solutions with a wrong
    answer first, so its beginning alone has no right one and no F1.

    Raises UserError where the file does not exist, is empty or of no known format, or a row cannot
    be read and is not to be skipped.
    """
    path = Path(source).expanduser()
    if not is_table(path):
        raise UserError(f"evaluate.source {source} does not exist: give a ProcessBench JSON file")
    rows = read_rows(path)
    if not rows:
        raise UserError(f"evaluate.source {source} is empty: give a file with labelled steps")
    form, found = labelled_solutions(rows, source)
    checked(((row, why) for row, _, why in found), source, skip_bad_rows, "evaluate.skip_bad_rows")
    rejected = [Rejected(row.index, why) for row, _, why in found if why]
    named = [
        StepItem(s.solution_id or f"row-{row.index}", s.problem, s.steps, s.label,
                 s.final_answer_correct, s.generator, s.wrong_steps, s.category)
        for row, s, _ in found
        if s is not None
    ]  # fmt: skip
    if not named:
        raise UserError(f"evaluate.source {source}: none of {len(rows)} rows is usable: "
                        f"{rejected[0].reason}")  # fmt: skip
    if form.repeats_rows:
        firsts = {item.id: i for i, item in reversed(list(enumerate(named)))}
        named = [item for i, item in enumerate(named) if firsts[item.id] == i]
    items, twice = with_own_ids(named)
    count = min(limit or len(items), len(items))
    chosen = [items[i * len(items) // count] for i in range(count)]
    return StepItemSet(chosen, rejected, twice, form.name)


def labelled_solutions(
    rows: Sequence[FileRow], source: str
) -> tuple[StepFormat, list[tuple[FileRow, LabelledSolution | None, str]]]:
    """The format of a file, and each row with its solution, or with the reason why it has none.

    Raises UserError where the rows have no labelled steps.
    """
    whole = [row.value for row in rows if not row.problem]
    form = format_of(whole)
    if form is None:
        first = rows[0].says(rows[0].problem) if not whole else ""
        raise UserError(
            f"{source} has no labelled steps: "
            + (first or f"its first row has {sorted(map(str, whole[0]))}; ")
            + ("" if first else "a row needs problem, steps, label and final_answer_correct "
               "(ProcessBench), or the columns of PRM800K, Math-Shepherd, or steps with labels")
        )  # fmt: skip
    rated = are_ratings(whole) if form.name == "labelled steps" else False
    found: list[tuple[FileRow, LabelledSolution | None, str]] = []
    for row in rows:
        try:
            if row.problem:
                raise BadRow(row.problem)
            solution = form.solution(row.value, rated)
            if not solution.problem.strip():
                raise BadRow("its problem is empty")
            found.append((row, solution, ""))
        except BadRow as error:
            found.append((row, None, str(error)))
    return form, found


def with_own_ids(items: Iterable[StepItem]) -> tuple[list[StepItem], dict[str, int]]:
    """The items, each with an id that no other has, and the ids that several had with their number.

    Judgements are joined with their items by id. The first of several keeps it, the second becomes
    `id~2`; the same file gives the same ids.
    """
    items = list(items)
    names, twice = own_names([item.id for item in items])
    return [replace(item, id=name) for item, name in zip(items, names, strict=True)], twice


def own_names(names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Names that differ, in the same order, and those that were there several times."""
    counts = Counter(names)
    taken, met = set(counts), Counter[str]()
    found = []
    for name in names:
        met[name] += 1
        own = name
        if met[name] > 1:
            while (own := f"{name}{APART}{met[name]}") in taken:
                met[name] += 1
            taken.add(own)
        found.append(own)
    return found, {name: count for name, count in counts.items() if count > 1}
