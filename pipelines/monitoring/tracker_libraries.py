"""Trackers of other people: Weights & Biases, TensorBoard, MLflow, Trackio.

Each keeps files of this machine unless the library itself is told of a server, by its own
variables. None starts one. A library is imported when its curve begins.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from stepwiser.config import RunConfig, flatten
from stepwiser.run.store import RunStore

PROJECT = "stepwiser"
"""What all of them call the project, or the experiment."""


class Tracker(Protocol):
    """Where curves go while a stage runs; entered before the first row, left after the last."""

    name: str
    """Of the curve, within the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """``kind``: of the error that ended the work, if one did."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Numbers of one moment; ``step`` says which, and never decreases."""
        ...

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """Numbers that were known only after later ones had been logged.

        Those whose names begin with ``prefix`` are drawn over the row's ``step``, or over ``axis``,
        which gets it, where the tracker's own step never decreases.
        """
        ...


class Curve:
    """What all trackers share: a curve's name, and an id that every start of it finds again.

    ``axis``: the figure that charts are drawn over; the row's ``step`` if None.
    """

    library: ClassVar[str]

    def __init__(
        self, config: RunConfig, store: RunStore, name: str, axis: str | None = None
    ) -> None:
        self.config = config
        self.store = store
        self.name = name
        self.axis = axis

    @cached_property
    def run_id(self) -> str:
        """Of the curve in its tracker, the same after every start."""
        name = f"{self.library}-{self.name}.id"
        file = self.store.file(name)
        if file.is_file() and (known := file.read_text().strip()):
            return known
        run_id = uuid.uuid4().hex[:8]
        with self.store.writing(name) as temporary:
            temporary.write_text(run_id)
        return run_id

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.config.name}/{self.name}"

    def position(self, row: Mapping[str, Any]) -> int:
        """Where on the axis a row lies."""
        return int(row[self.axis] if self.axis else row["step"])


class WandbTracker(Curve):
    """One W&B run, offline where there is no key; a second start continues the same run."""

    library = "wandb"

    def __enter__(self) -> Self:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        run_id = self.run_id
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        self._run = wandb.init(
            project=PROJECT,
            name=self.title,
            id=run_id,
            resume="allow" if has_key else None,
            mode=None if "WANDB_MODE" in os.environ else "online" if has_key else "offline",
            dir=str(self.store.root),
            config=flatten(self.config),
            # Not the run of a stage before, should that still be sending.
            settings=wandb.Settings(console="off", x_disable_stats=True, reinit="create_new"),
        )
        if self.axis:
            self._run.define_metric("*", step_metric=self.axis)
        return self

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log(numbers(row), step=row["step"])

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        self._run.define_metric(f"{prefix}*", step_metric=axis)
        if figures := numbers(row, prefix):
            self._run.log({**figures, axis: row["step"]}, commit=False)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)


class TensorboardTracker(Curve):
    """Event files under `tensorboard/` of the run; every start adds one to the same curve."""

    library = "tensorboard"

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.store.root / "tensorboard" / self.name
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        # As JSON: a line break in a value would end its row of the table.
        rows = [f"| `{key}` | {json.dumps(value)} |" for key, value in flatten(self.config).items()]
        table = "\n".join(["| key | value |", "|---|---|", *rows])
        self._writer.add_text("settings", table)
        return self

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, self.position(row))

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        for name, value in numbers(row, prefix).items():
            self._writer.add_scalar(name, value, row["step"])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._writer.add_text("ended by", kind.__name__)
        self._writer.close()


class MlflowTracker(Curve):
    """One MLflow run, in `mlflow.db` of the run directory unless MLFLOW_TRACKING_URI names a place.

    MLflow gives runs ids of its own: ours is a tag, by which a second start finds the run.
    """

    library = "mlflow"
    TAG = "stepwiser.run_id"

    def __enter__(self) -> Self:
        # It says on the terminal how it makes its tables.
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.store.root}/mlflow.db"
        self._client = MlflowClient(tracking_uri=place)
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(
                PROJECT, artifact_location=(self.store.root / "mlflow").as_uri()
            )
        )
        mine = f"tags.`{self.TAG}` = '{self.run_id}'"
        found = self._client.search_runs([experiment], mine, max_results=1)
        run = (
            found[0]
            if found
            else self._client.create_run(
                experiment, run_name=self.title, tags={self.TAG: self.run_id}
            )
        )
        self._run = run.info.run_id
        self._client.set_terminated(self._run, "RUNNING")
        self._log_settings(run.data.params)
        return self

    def _log_settings(self, known: Mapping[str, str]) -> None:
        """Those that are not there yet: MLflow lets no setting of a run change, a restart may."""
        from mlflow.entities import Param

        settings = {key: str(value)[:6000] for key, value in flatten(self.config).items()}
        new = [Param(key, value) for key, value in settings.items() if key not in known]
        for start in range(0, len(new), 100):  # as many as one request may have
            self._client.log_batch(self._run, params=new[start : start + 100])

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._log(numbers(row), self.position(row))

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        self._log(numbers(row, prefix), row["step"])

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, float(value), now, step) for name, value in figures.items()]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._client.set_terminated(self._run, "FINISHED" if kind is None else "FAILED")


class TrackioTracker(Curve):
    """One Trackio run, where Trackio keeps all of them: TRACKIO_DIR, or the cache of the Hub's
    client; a Space or a server where its own variables name one."""

    library = "trackio"

    def __enter__(self) -> Self:
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            # Names tell its runs apart: two run directories may have one.
            name=f"{self.title}-{self.run_id}",
            config=flatten(self.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return self

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log(numbers(row), step=self.position(row))

    def log_late(self, row: Mapping[str, Any], prefix: str, axis: str) -> None:
        """See `Tracker`."""
        if figures := numbers(row, prefix):
            self._run.log(figures, step=row["step"])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._run.finish()


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Figures of a row whose names begin so; the step is none."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step" and name.startswith(prefix)
    }
