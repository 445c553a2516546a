"""Curves to trackers: of training, whose `metrics.jsonl` the learner itself writes, and of
annotation, whose diary is the unit log. Nothing waits for a tracker, and nothing fails by one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.markup import escape

from pipelines.monitoring.tracker_libraries import (
    Curve,
    MlflowTracker,
    TensorboardTracker,
    Tracker,
    TrackioTracker,
    WandbTracker,
)
from stepwiser.config import RunConfig
from stepwiser.run.store import RunStore

FINISH_S = 30.0
"""Longest that a stage waits for the last rows to be sent, by all trackers."""

TRACKERS: dict[str, type[Curve]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
"""By the names of `tracker`, besides `none`; a further one needs an entry here and its name there.
Where its library is no dependency of all, `pyproject.toml` has an extra of that name."""


class Trackers:
    """One curve in every tracker that a config asks for; entering and leaving are quick."""

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        name: str,
        console: Console,
        axis: str | None = None,
    ) -> None:
        """``axis``: the figure that charts are drawn over; the row's ``step`` if None."""
        made = [TRACKERS[kind](config, store, name, axis) for kind in config.trackers]
        self.run_id = made[0].run_id if made else None
        """Of the curve in the first of them; None where nothing is tracked."""
        self._members = [BackgroundTracker(one, one.library, console) for one in made]  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        for member in self._members:
            member.start()
        return self

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for member in self._members:
            member.put(lambda tracker: tracker.log(row))

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        for member in self._members:
            member.put(lambda tracker: tracker.log_late(row, prefix, axis))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for member in self._members:
            member.end(kind)
        deadline = time.monotonic() + FINISH_S
        for member in self._members:
            member.join(deadline)


class BackgroundTracker:
    """A `Tracker` on a thread of its own that nobody waits for.

    W&B takes two seconds to start, more over a slow network, and work is done without it. What goes
    wrong there (a library that is missing, a disk that is full, a network that is gone) is a
    warning, once; what comes after it is dropped.
    """

    def __init__(self, tracker: Tracker, library: str, console: Console) -> None:
        self._tracker = tracker
        self._library = library
        self._console = console
        self._rows: queue.SimpleQueue[Callable[[Tracker], None] | type[BaseException] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._feed, name=f"tracker {library}", daemon=True)

    def start(self) -> None:
        """Begin the curve."""
        self._thread.start()

    def put(self, log: Callable[[Tracker], None]) -> None:
        """Have something logged, in turn; nothing where the tracker has failed."""
        if self._thread.is_alive():
            self._rows.put(log)

    def end(self, kind: type[BaseException] | None) -> None:
        """The last row is in; ``kind``: of the error that ended the work, if one did."""
        self._rows.put(kind)

    def join(self, deadline: float) -> None:
        """Wait until all is sent, up to a moment of the monotonic clock."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it was still sending after {FINISH_S:g} s")

    def _feed(self) -> None:
        try:
            with self._tracker as tracker:
                while (row := self._rows.get()) is not None:
                    if isinstance(row, type):
                        raise _Ended
                    row(tracker)
        except _Ended:
            pass
        except ImportError as error:
            self._warn(
                f"{error}; `pip install 'stepwiser[{self._library}]'` brings it, or take "
                f"{self._library} out of `tracker`"
            )
        except Exception as error:  # of the network, the disk, the service: the work goes on
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        self._console.print(
            f"[yellow]{self._library} has no curve of {self._tracker.name}, or not all of it: "
            f"{escape(reason)}",
            soft_wrap=True,
        )


class _Ended(Exception):
    """The work failed, not its logging: the tracker is told."""
