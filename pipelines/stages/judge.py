"""`stepwiser judge`: a file of solutions, judged by engines of this start as the service judges."""

from __future__ import annotations

from pipelines.evaluation.file_judging import FileJudging
from pipelines.session.session import Session
from pipelines.stages.serve import judge_options, served_judge
from serve.judging.replica import judge_service
from serve.schema import JudgeRequest, JudgeResponse
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.run.units import weights_id


def judge_by_engines(config: RunConfig, work: FileJudging) -> int:
    """Have the judge that `stepwiser serve` would serve answer; returns how many rows it could not.

    Raises UserError where there is no judge, and EngineFailure where its engines end.
    """
    with Session(config, work.console) as session:
        session.start(("judge",))
        with session.stage("judge", resumes=True):
            judge = served_judge(session)
            options = judge_options(config, judge)
            left = work.open(
                weights_id(judge),
                options.prompts,
                options.max_tokens,
                options.votes,
                options.temperature,
            )
            if left:
                service = judge_service(options, session.pool(judge))

                async def ask(request: JudgeRequest) -> JudgeResponse | str:
                    try:
                        return await service.answer(request)
                    except UserError as error:
                        return str(error)

                places = config.serve.max_ongoing_requests * config.engine.count
                session.run(work.judge(ask, left, places))
        return work.finish()
