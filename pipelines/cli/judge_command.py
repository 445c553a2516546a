"""`stepwiser judge`: by a server without Ray and engines, else as a stage."""

from __future__ import annotations

import asyncio

from pipelines.evaluation.file_judging import FileJudging, JudgeJob, judge_by_server
from pipelines.monitoring.progress import make_console
from stepwiser.config import RunConfig


def judge_solutions(job: JudgeJob, config: RunConfig, address: str | None) -> int:
    """Judge a file and say what came of it; returns how many rows were not judged."""
    work = FileJudging(job, make_console())
    if address is not None:
        return asyncio.run(judge_by_server(work, address))
    from pipelines.stages.judge import judge_by_engines

    return judge_by_engines(config, work)
