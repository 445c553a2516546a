"""Stages, one after the other, in one session."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from pipelines.session.session import Session
from pipelines.stages.summary import print_summary
from stepwiser.config import RunConfig


def run_stages(config: RunConfig, stages: Sequence[str], joins: bool = False) -> dict[str, Any]:
    """Run stages one after the other; returns what each measured. ``joins``: as for `Session`."""
    results = {}
    with Session(config, joins=joins) as session:
        session.start(stages)
        for stage in stages:
            session.console.rule(f"[bold]{stage}", align="left")
            results[stage] = run_stage(session, stage)
        if "report" in results and len(results) > 1:
            print_summary(session.console, results)
    return results


def run_stage(session: Session, stage: str) -> dict[str, Any]:
    """Run one stage, whose module is called like it; returns what it measured.

    Imported when it runs: a start of `label` must not wait for vLLM.
    """
    metrics: dict[str, Any] = importlib.import_module(f"pipelines.stages.{stage}").run(session)
    return metrics
