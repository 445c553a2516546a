"""`stepwiser serve`: a judge on Ray Serve until Ctrl-C or SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.session.engine_options import engine_options
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from serve.app import ServeOptions
from serve.app import run as run_app
from stepwiser.config import RunConfig
from stepwiser.prompting.prompt_format import resolve_model
from stepwiser.run.judge_card import read_judge_settings
from stepwiser.run.model_card import rule_in_words


def run(session: Session) -> dict[str, Any]:
    """Serve models/judge of the run, or serve.model; blocks."""
    config = session.config
    if config.serve.model is None:
        judge = session.store.find_model(JUDGE, "train")
    else:
        judge = resolve_model(config.serve.model)
    run_app(serve_options(config, judge), blocking=True)
    return {}


def serve_options(config: RunConfig, judge: str) -> ServeOptions:
    """Of the run's judge, or of serve.model: asked as its card says where it has one."""
    settings = read_judge_settings(Path(judge)) if config.serve.model else None
    asked: dict[str, Any] = {
        "prompts": config.judge_prompts,
        "max_tokens": config.judge_max_tokens,
        "label_rule": None if config.serve.model else rule_in_words(config.label),
    }
    if settings is not None:
        asked = {
            "prompts": settings.prompts,
            "max_tokens": settings.max_tokens,
            "label_rule": settings.label_rule,
            "temperature": settings.temperature,
        }
    return ServeOptions(
        engine=engine_options(config, judge),
        serve=config.serve,
        cpus=config.engine.ray_cpus,
        gpus=config.engine.gpus,
        **asked,
    )
