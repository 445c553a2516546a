"""Training curves to Weights & Biases; `metrics.jsonl` is written by the learner itself."""

from __future__ import annotations

import os
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stepwiser.config import flatten

if TYPE_CHECKING:
    from pipelines.session import Session


class MetricsLogger:
    """One W&B run, offline where there is no key; a resumed training continues the same run."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.name = name

    def __enter__(self) -> Self:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        id_file = self.session.store.root / f"wandb-{self.name}.id"
        run_id = id_file.read_text().strip() if id_file.is_file() else uuid.uuid4().hex[:8]
        id_file.write_text(run_id)
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        self._run = wandb.init(
            project="stepwiser",
            name=f"{self.session.config.name}/{self.name}",
            id=run_id,
            resume="allow" if has_key else None,
            mode=None if "WANDB_MODE" in os.environ else "online" if has_key else "offline",
            dir=str(self.session.store.root),
            config=flatten(self.session.config),
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        return self

    def log(self, row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._run.log(numbers, step=row["step"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
