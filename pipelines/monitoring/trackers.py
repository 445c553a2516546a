"""Curves to a tracker, Weights & Biases unless told otherwise: of training, whose `metrics.jsonl`
the learner itself writes, and of annotation, whose diary is the unit log."""

from __future__ import annotations

import os
import queue
import threading
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, Self

from rich.console import Console

from stepwiser.config import RunConfig, flatten
from stepwiser.run.store import RunStore, writing

FINISH_S = 30.0
"""Longest that a stage waits for the last rows to be sent."""


class Tracker(Protocol):
    """Where curves go while a stage runs; entered before the first row, left after the last."""

    name: str
    """Of the curve, within the run."""

    @property
    def run_id(self) -> str | None:
        """What a later start continues; None where nothing is kept."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """``kind``: of the error that ended the work, if one did."""
        ...

    def log(self, row: dict[str, Any]) -> None:
        """Numbers of one moment; ``step`` says which, and never decreases."""
        ...

    def log_late(self, row: dict[str, Any], prefix: str, axis: str) -> None:
        """Numbers that were known only after later ones had been logged.

        Those whose names begin with ``prefix`` are drawn over ``axis``, which gets the row's
        ``step``.
        """
        ...


class NoTracker:
    """Curves stay in the run directory."""

    run_id = None

    def __init__(
        self, config: RunConfig, store: RunStore, name: str, axis: str | None = None
    ) -> None:
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        pass

    def log_late(self, row: dict[str, Any], prefix: str, axis: str) -> None:
        pass


class WandbTracker:
    """One W&B run, offline where there is no key; a second start continues the same run.

    ``axis``: the figure that charts are drawn over; W&B's own step if None.
    """

    def __init__(
        self, config: RunConfig, store: RunStore, name: str, axis: str | None = None
    ) -> None:
        self.config = config
        self.store = store
        self.name = name
        self.axis = axis

    def __enter__(self) -> Self:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        run_id = self.run_id
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        self._run = wandb.init(
            project="stepwiser",
            name=f"{self.config.name}/{self.name}",
            id=run_id,
            resume="allow" if has_key else None,
            mode=None if "WANDB_MODE" in os.environ else "online" if has_key else "offline",
            dir=str(self.store.root),
            config=flatten(self.config),
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        if self.axis:
            self._run.define_metric("*", step_metric=self.axis)
        return self

    @cached_property
    def run_id(self) -> str:
        """Of the run in W&B, the same after every start."""
        file = self.store.root / f"wandb-{self.name}.id"
        if file.is_file() and (known := file.read_text().strip()):
            return known
        run_id = uuid.uuid4().hex[:8]
        with writing(file) as temporary:
            temporary.write_text(run_id)
        return run_id

    def log(self, row: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log(_numbers(row), step=row["step"])

    def log_late(self, row: dict[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        self._run.define_metric(f"{prefix}*", step_metric=axis)
        figures = {k: v for k, v in _numbers(row).items() if k.startswith(prefix)}
        if figures:
            self._run.log({**figures, axis: row["step"]}, commit=False)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}


TRACKERS: dict[str, Callable[[RunConfig, RunStore, str, str | None], Tracker]] = {
    "wandb": WandbTracker,
    "none": NoTracker,
}
"""By the names of `tracker`; a further one needs an entry here and its name there."""


def make_tracker(config: RunConfig, store: RunStore, name: str, axis: str | None = None) -> Tracker:
    """The tracker that a config asks for, for one curve.

    ``axis``: the figure that charts are drawn over; the tracker's own step if None.
    """
    return TRACKERS[config.tracker](config, store, name, axis)


class BackgroundTracker:
    """A `Tracker` that nobody waits for and that nothing fails by.

    W&B takes two seconds to start, more over a slow network, and annotation is done without it:
    a thread of its own starts it and feeds it. What goes wrong there is a warning, once.
    """

    def __init__(self, tracker: Tracker, console: Console) -> None:
        self._tracker = tracker
        self._console = console
        self._rows: queue.SimpleQueue[dict[str, Any] | type[BaseException] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._feed, name="tracker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def log(self, row: dict[str, Any]) -> None:
        if self._thread.is_alive():
            self._rows.put(row)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._rows.put(kind)
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            self._warn(f"it was still sending after {FINISH_S:g} s")

    def _feed(self) -> None:
        try:
            with self._tracker as tracker:
                while isinstance(row := self._rows.get(), dict):
                    tracker.log(row)
                if row is not None:
                    raise _Ended
        except _Ended:
            pass
        except Exception as error:  # of the network, the disk, the service: the work goes on
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        self._console.print(
            f"[yellow]the tracker has no curve of {self._tracker.name}, or not all of it: {reason}",
            soft_wrap=True,
        )


class _Ended(Exception):
    """The work failed, not its logging: the tracker is told."""
