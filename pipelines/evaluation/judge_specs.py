"""Which judges a run can ask, and how each is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from actors.pool.pool import EnginePool
from actors.scoring.scorers import StepScorerPool
from pipelines.evaluation.answers_file import AnswersFile
from pipelines.session.engine_options import engine_threads
from pipelines.session.session import Session
from pipelines.training.baselines import DISCRIMINATIVE, JUDGE, WARM, judge_start
from stepwiser.config.judges import JudgeConfig
from stepwiser.judging.endpoint import EndpointClient, EndpointCritic
from stepwiser.judging.judges import DiscriminativeJudge, GenerativeJudge, Judge
from stepwiser.judging.scoring_judge import ScoringJudge
from stepwiser.judging.step_models import ScorerOptions
from stepwiser.prompting.generation import Sampling
from stepwiser.run.units import weights_id

MakeJudge = Callable[[int], Judge]
"""A judge of so many votes a step."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge to score: a model directory and how it is asked."""

    name: str
    model: str
    kind: str
    force: str = ""
    settings: JudgeConfig | None = None
    """Of a judge from elsewhere."""
    threshold: float = 0.5
    """From which a score is Positive, for those that give scores."""

    @property
    def weights(self) -> str:
        """Which weights answer: an endpoint has nothing to tell them by but the model's name."""
        return self.model if self.kind == "endpoint" else weights_id(self.model)

    @property
    def asked(self) -> str:
        """How it is asked, in words: another way is another judge."""
        words = f"{self.kind} {self.force}"
        if self.settings is None or self.kind == "generative":
            return words
        if self.kind == "endpoint":
            return f"{words} {self.settings.url}"
        return f"{words} {self.threshold} {self.settings.mark}"


def judge_specs(session: Session) -> Iterator[JudgeSpec]:
    """The start, the start made to reason, the warm start, the trained judge, the discriminative
    baseline."""
    start = judge_start(session)
    yield JudgeSpec("start", start, "generative")
    if session.config.evaluate.forced_prefix:
        yield JudgeSpec("start, forced", start, "generative", session.config.evaluate.forced_prefix)
    for name, folder, kind in (
        ("warm start", WARM, "generative"),
        (JUDGE, JUDGE, "generative"),
        (DISCRIMINATIVE, DISCRIMINATIVE, "discriminative"),
    ):
        if session.store.has_model(folder):
            yield JudgeSpec(name, session.store.model(folder), kind)


def compared_judges(session: Session) -> Iterator[JudgeSpec]:
    """Judges from elsewhere (`evaluate.judges`); raises UserError as `Session.resolve`."""
    for judge in session.config.evaluate.judges:
        model = judge.model if judge.kind == "endpoint" else session.resolve(judge.model)
        number = 0.5 if judge.threshold == "chosen" else judge.threshold
        yield JudgeSpec(judge.name, model, judge.kind, settings=judge, threshold=number)


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


@contextlib.contextmanager
def asking(session: Session, spec: JudgeSpec) -> Iterator[MakeJudge]:
    """Makes the judge of a spec when there is something to ask; what it holds ends with the block.

    Engines stay, for the next judge changes their weights.
    """
    with contextlib.ExitStack() as held:
        judges: dict[int, Judge] = {}
        settings = spec.settings

        def make(votes: int) -> Judge:
            if settings is not None and settings.scores_steps:
                votes = 1  # it would say the same again
            if votes not in judges:
                judges[votes] = build(votes)
            return judges[votes]

        def build(votes: int) -> Judge:
            if settings is None or spec.kind == "generative":
                pool = session.pool(spec.model)
                temperature = session.config.evaluate.temperature
                return make_judge(session, spec, pool, votes=votes, temperature=temperature)
            if spec.kind == "endpoint":
                return held.enter_context(_critic(session, settings, votes))
            return ScoringJudge(held.enter_context(_scorers(session, spec)), spec.threshold)

        yield make


@contextlib.contextmanager
def _scorers(session: Session, spec: JudgeSpec) -> Iterator[StepScorerPool]:
    """Scorers in the place of the engines, which end: a laptop has no room for both."""
    assert spec.settings is not None
    engine = session.config.engine
    options = ScorerOptions(
        form=spec.kind,  # type: ignore[arg-type]
        model=spec.model,
        mark=spec.settings.mark,
        dtype=engine.dtype,
        use_gpu=engine.gpus > 0,
        allow_pickled_weights=session.config.allow_pickled_weights,
    )
    threads = engine_threads(session.config, "evaluate", engine.count)
    with session.in_place_of_engines():
        pool = StepScorerPool(
            options,
            count=engine.count,
            cpus=engine.ray_cpus,
            gpus=engine.gpus,
            threads=threads,
        )
        with contextlib.closing(pool):
            pool.load()
            yield pool


@contextlib.contextmanager
def _critic(session: Session, settings: JudgeConfig, votes: int) -> Iterator[EndpointCritic]:
    """Says at the end which requests failed, and why."""
    assert settings.url is not None
    config = session.config
    client = EndpointClient(
        settings.model, settings.url, settings.key_variable, settings.concurrency
    )
    yield EndpointCritic(
        endpoint=client,
        prompts=session.prompts(judge_start(session)),
        votes=votes,
        max_tokens=config.judge_max_tokens,
        temperature=config.evaluate.temperature,
        kept=AnswersFile(session.store.storage, f"answers/{settings.name}.jsonl"),
    )
    for reason, count in sorted(client.failures.items()):
        session.console.print(
            f"{settings.name}: {count} requests failed, and are no verdict: {reason}",
            style="yellow",
            markup=False,
        )
