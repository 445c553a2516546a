"""Which judges a run can ask, and how each is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actors.pool.pool import EnginePool
from pipelines.session.session import Session
from pipelines.training.baselines import DISCRIMINATIVE, JUDGE, judge_start
from stepwiser.generation import Sampling
from stepwiser.judging.judges import DiscriminativeJudge, GenerativeJudge, Judge


@dataclass(frozen=True)
class JudgeSpec:
    """A judge to score: a model directory and how it is asked."""

    name: str
    model: str
    kind: str
    force: str = ""


def judge_specs(session: Session) -> Iterator[JudgeSpec]:
    """The start, the start made to reason, the trained judge, the discriminative baseline."""
    start = judge_start(session)
    yield JudgeSpec("start", start, "generative")
    if session.config.evaluate.forced_prefix:
        yield JudgeSpec("start, forced", start, "generative", session.config.evaluate.forced_prefix)
    for name, kind in ((JUDGE, "generative"), (DISCRIMINATIVE, "discriminative")):
        path = session.store.model_dir(name)
        if (path / "config.json").is_file():
            yield JudgeSpec(name, str(path), kind)


def make_judge(
    session: Session,
    spec: JudgeSpec,
    pool: EnginePool,
    *,
    votes: int,
    temperature: float,
) -> Judge:
    """A judge over engines that already hold its weights."""
    prompts = session.prompts(spec.model)
    if spec.kind == "discriminative":
        return DiscriminativeJudge(pool, prompts)
    sampling = Sampling(session.config.judge_max_tokens, n=votes, temperature=temperature)
    return GenerativeJudge(pool, prompts, sampling, spec.force)
