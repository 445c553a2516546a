"""`stepwiser serve`: a judge on Ray Serve until Ctrl-C or SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from pipelines.session.engine_options import engine_options
from pipelines.session.session import Session
from pipelines.training.baselines import JUDGE
from serve.app import TOKEN_VARIABLE, ServeOptions, build_app
from serve.app import run as run_app
from serve.judging.replica import ReplicaOptions
from serve.solving.replica import PolicyOptions
from stepwiser.config import RunConfig, load_config
from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import model_folder, resolve_model
from stepwiser.prompting.hub.reference import hub_model
from stepwiser.run.model_card import read_judge_settings, rule_in_words
from stepwiser.run.store import RunStore
from stepwiser.storage.places import absolute


def run(session: Session) -> dict[str, Any]:
    """Serve models/judge of the run, or serve.model; blocks."""
    config, judge = session.config, served_judge(session)
    policy = None if config.serve.policy is None else session.resolve(config.serve.policy)

    def renewed() -> ServeOptions:
        # A training that went on, or a link that points elsewhere by now.
        return serve_options(config, served_judge(session), policy)

    run_app(serve_options(config, judge, policy), blocking=True, renewed=renewed)
    return {}


def application(arguments: dict[str, str]) -> Application:
    """For `serve run` and `serve deploy`: ``config``, a scenario's file, and key=value overrides.

    Raises UserError where neither serve.keys nor STEPWISER_API_TOKEN is set: whoever calls this
    decides where Serve listens, and nobody here learns of it.
    """
    overrides = [f"{key}={value}" for key, value in arguments.items() if key != "config"]
    config = load_config(Path(arguments["config"]) if "config" in arguments else None, overrides)
    model = config.serve.model
    if model is None:
        judge = RunStore(absolute(config.run_dir)).find_model(JUDGE, "train")
    else:
        judge = resolve_model(model)
    policy = None if config.serve.policy is None else resolve_model(config.serve.policy)
    options = serve_options(config, judge, policy)
    if config.serve.keys is None and options.api_token is None:
        raise UserError(
            "serve.keys: Serve may listen on any address; make keys with `stepwiser keys add NAME "
            f"--file keys.json` and give serve.keys=keys.json, or set {TOKEN_VARIABLE}"
        )
    return build_app(options)


def serve_options(config: RunConfig, judge: str, policy: str | None = None) -> ServeOptions:
    """Of the run's judge, or of serve.model: asked as its card says where it has one."""
    if Path(judge).is_dir():
        # What a link names now: a replica that starts again is to be the one that was lost.
        judge = str(Path(judge).resolve())
    asked = judge_options(config, judge)
    return ServeOptions(
        engine=asked.engine,
        prompts=asked.prompts,
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        label_rule=asked.label_rule,
        revision=asked.revision,
        serve=config.serve,
        cpus=config.engine.ray_cpus,
        gpus=config.engine.gpus,
        policy=None
        if policy is None
        else PolicyOptions(engine_options(config, policy), config.prompts, config.solve),
    )


def served_judge(session: Session) -> str:
    """serve.model, or models/judge of the run; raises UserError where there is none."""
    model = session.config.serve.model
    if model is None:
        return session.store.find_model(JUDGE, "train")
    return session.resolve(model)


def judge_options(config: RunConfig, judge: str) -> ReplicaOptions:
    """How a judge is asked: the run's as the run says, serve.model as its card does if it can."""
    settings = revision = None
    if config.serve.model:
        settings = read_judge_settings(model_folder(judge, weights=False))
        hub = hub_model(judge)
        revision = None if hub is None else hub.commit
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
    return ReplicaOptions(
        engine=engine_options(config, judge),
        votes=config.serve.votes,
        revision=revision,
        **asked,
    )
