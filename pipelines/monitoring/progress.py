"""Progress with rate and ETA: a live bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import timedelta
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from stepwiser.run.periodic import repeating

SECONDS_BETWEEN_LINES = 10.0
LOG_COLUMNS = 120


def make_console() -> Console:
    """A log is wider than the 80 columns that rich takes where there is no terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_COLUMNS
    return console


class _Bar(Progress):
    """A bar, and what else is to be seen under it."""

    under: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.under is not None:
            yield self.under


class ProgressBar:
    """Counts what is done; `note` is whatever the stage wants seen beside the bar."""

    def __init__(self, console: Console, title: str, total: int, unit: str, done: int = 0) -> None:
        self.console = console
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self._already = done
        self._started = time.monotonic()
        self._note = ""
        self._told_left: float | None = None
        self._exits = ExitStack()
        self._bar: _Bar | None = None
        if console.is_terminal:
            self._bar = _Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}  {task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(
                title, total=total, completed=done, unit=unit, rate="", eta="", note=""
            )

    def __enter__(self) -> Self:
        # A log shows a stage alive also while nothing gets done.
        shown = self._bar or repeating(self._say, SECONDS_BETWEEN_LINES)
        self._exits.enter_context(shown)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._exits.close()
        if not self._bar and kind is None:
            self._say(last=True)

    @property
    def elapsed(self) -> float:
        """Seconds since this start, never 0."""
        return max(1e-6, time.monotonic() - self._started)

    @property
    def rate(self) -> float:
        """Units a second since this start."""
        return (self.done - self._already) / self.elapsed

    def update(self, done: int | None = None, *, advance: int = 0, note: str | None = None) -> None:
        """So much is done; the last note stays where none is given."""
        self.done = self.done + advance if done is None else done
        self._note = self._note if note is None else note
        if self._bar:
            # What stands under the bar has a time to go of its own.
            known = self.rate > 0 and self._bar.under is None
            eta = f"ETA {timedelta(seconds=round(self._left))}" if known else ""
            self._bar.update(
                self._task,
                completed=self.done,
                rate=f"{self.rate:.3g}/s",
                eta=eta,
                note=self._note,
            )

    @property
    def _left(self) -> float:
        """Seconds to go at this rate, which is above 0."""
        return (self.total - self.done) / self.rate

    @property
    def is_live(self) -> bool:
        """There is a bar, under which more can be shown."""
        return self._bar is not None

    def show(
        self,
        *,
        note: str = "",
        under: RenderableType | None = None,
        left_s: float | None = None,
    ) -> None:
        """From any thread: what stands under the bar, or as the note of a log, which has none.

        ``left_s``: seconds to go, where more is known than how many units are done.
        """
        if self._bar:
            self._bar.under = under
            self._bar.update(self._task, eta="")
        else:
            self._note, self._told_left = note, left_s

    def _say(self, last: bool = False) -> None:
        words = f"{self.title}: {self.done}/{self.total} {self.unit}, {self.elapsed:.0f} s"
        left = self._told_left
        if self.rate > 0:
            words += f", {self.rate:.3g}/s"
            left = self._left if left is None else left
        if left is not None and not last:
            words += f", ETA {left:.0f} s"
        note = "" if last else self._note
        # One line each, however long: logs are searched by line.
        self.console.print(f"{words}  {note}".rstrip(), highlight=False, soft_wrap=True)
