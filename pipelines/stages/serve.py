"""`stepwiser serve`: the trained judge on Ray Serve until Ctrl-C."""

from __future__ import annotations

from typing import Any

from pipelines.session.engine_options import engine_options
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from serve.app import ServeOptions
from serve.app import run as run_app


def run(session: Session) -> dict[str, Any]:
    """Serve models/judge of the run; blocks."""
    config = session.config
    judge = session.store.find_model(JUDGE, "train")
    options = ServeOptions(
        engine=engine_options(config, judge),
        prompts=config.judge_prompts,
        serve=config.serve,
        max_tokens=config.judge_max_tokens,
        cpus=config.engine.ray_cpus,
        gpus=config.engine.gpus,
    )
    run_app(options, blocking=True)
    return {}
