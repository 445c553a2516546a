"""A file of solutions, judged by whoever answers: what is left, what was answered, and the output.

Every answer is kept as it comes, in a file beside the output; a start that was killed goes on with
what is missing. The output appears whole, in the order of the input. Engines that answer are the
stage `judge`'s; a server is asked from here, and nothing is started for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from pipelines.evaluation.answers_file import AnswersFile
from pipelines.monitoring.formatting import facts_table
from pipelines.monitoring.progress import ProgressBar
from serve.schema import JudgeRequest, JudgeResponse, explain, steps_of
from stepwiser.client import AsyncJudgeClient, JudgeError
from stepwiser.data.files import FileRow, checked
from stepwiser.data.records import content_id
from stepwiser.data.solutions import FileSolution, read_solutions
from stepwiser.errors import UserError
from stepwiser.storage.folder import Folder, writing

REMOTE_AT_A_TIME = 64
"""Solutions that a server is asked about at once; what it has no room for comes back later."""
OWN_FAULT = frozenset({413, 422, 504})
"""Status of a refusal that is about the one solution, and no reason to leave the others."""
LABELS = {"Positive": True, "Negative": False, None: None}

Ask = Callable[[JudgeRequest], Awaitable[JudgeResponse | str]]
"""The answer, or why this solution cannot be judged; what ends all raises."""


@dataclass(frozen=True)
class JudgeJob:
    """What one start is to judge."""

    source: Path
    out: Path
    """JSON lines, a solution each, as `row_of` makes them."""
    votes: int | None = None
    temperature: float | None = None
    skip_bad_rows: bool = False

    @property
    def journal(self) -> Path:
        """Answers so far."""
        return self.out.with_name(self.out.name + ".part")

    @property
    def rejects(self) -> Path:
        """Rows that were not judged, and why."""
        return self.out.with_name(self.out.stem + ".rejects.jsonl")


@dataclass(frozen=True)
class _Work:
    """A solution, and what is asked about it."""

    solution: FileSolution
    request: JudgeRequest


class FileJudging:
    """A file's solutions and the answers to them, those of earlier starts among them."""

    def __init__(self, job: JudgeJob, console: Console) -> None:
        """Read the file; steps are cut and checked as the service does it, before anything starts.

        Raises UserError where the output exists, or the file has rows that cannot be read and they
        are not to be skipped.
        """
        if job.out.suffix != ".jsonl":
            raise UserError(f"--out {job.out}: JSON lines are written; end the name in .jsonl")
        if job.out.exists():
            raise UserError(f"{job.out} exists already: choose another --out, or delete it")
        self.job = job
        self.console = console
        found = read_solutions(job.source)
        for words in found.notices:
            console.print(f"{job.source.name}: {words}", style="yellow", markup=False)
        self._work: list[_Work] = []
        self._rejected = list(found.bad)
        for solution in found.solutions:
            request = _request(solution, job)
            if isinstance(request, str):
                self._rejected.append((solution.row, request))
            else:
                self._work.append(_Work(solution, request))
        self._rejected.sort(key=_row_index)
        checked(self._rejected, str(job.source), job.skip_bad_rows)
        self._answers = AnswersFile(Folder(job.journal.parent), job.journal.name)
        self._keys: list[str] = []

    def open(self, *judge: object) -> list[int]:
        """What nobody has asked this judge, which its parts name; another's answers do not count.

        Returns positions; to be called before `judge` and `finish`.
        """
        asked = content_id(*judge)
        self._keys = [
            content_id(asked, one.solution.row.index, one.request.model_dump_json())
            for one in self._work
        ]
        return [i for i, key in enumerate(self._keys) if key not in self._answers]

    async def judge(self, ask: Ask, left: list[int], places: int) -> None:
        """Ask about what is left, ``places`` at a time; what is answered is kept at once."""
        gate = asyncio.Semaphore(places)
        done = len(self._work) - len(left)
        with ProgressBar(self.console, "judge", len(self._work), "solutions", done) as bar:

            async def one(index: int) -> None:
                async with gate:
                    answer = await ask(self._work[index].request)
                if isinstance(answer, str):
                    self._rejected.append((self._work[index].solution.row, answer))
                else:
                    self._answers[self._keys[index]] = answer.model_dump()
                bar.update(advance=1)

            try:
                async with asyncio.TaskGroup() as group:
                    for index in left:
                        group.create_task(one(index))
            except* Exception as errors:
                raise errors.exceptions[0] from None

    def finish(self) -> int:
        """Write the output, and what was not judged beside it; returns how many that are."""
        job = self.job
        answers = [
            (one.solution, JudgeResponse.model_validate(self._answers[key]))
            for one, key in zip(self._work, self._keys, strict=True)
            if key in self._answers
        ]
        with writing(job.out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for solution, answer in answers:
                file.write(json.dumps(row_of(solution, answer), ensure_ascii=False) + "\n")
        rejected = sorted(self._rejected, key=_row_index)
        if rejected:
            with writing(job.rejects) as temporary, temporary.open("w", encoding="utf-8") as file:
                for row, why in rejected:
                    file.write(json.dumps({"row": row.index, "reason": why}) + "\n")
        job.journal.unlink(missing_ok=True)
        self._print(answers, rejected)
        return len(rejected)

    def _print(
        self,
        answers: list[tuple[FileSolution, JudgeResponse]],
        rejected: list[tuple[FileRow, str]],
    ) -> None:
        steps = [step for _, answer in answers for step in answer.steps]
        facts = [
            ("solutions", f"{len(answers):,}"),
            ("with a Negative step", f"{sum(a.first_negative != -1 for _, a in answers):,}"),
            ("steps", f"{len(steps):,}"),
            ("without a verdict", f"{sum(step.verdict is None for step in steps):,}"),
            ("tokens written", f"{sum(a.usage.judge_tokens for _, a in answers):,}"),
        ]
        self.console.print(facts_table(facts, f"judged: {self.job.source.name}"))
        self.console.print(f"{self.job.out}", markup=False, highlight=False, soft_wrap=True)
        if rejected:
            row, why = rejected[0]
            self.console.print(
                f"{len(rejected)} rows were not judged, and are listed in {self.job.rejects}: "
                f"{row.says(why)}",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


async def judge_by_server(work: FileJudging, address: str) -> int:
    """Have a served judge answer, as its own settings say where the job says nothing.

    Returns how many rows were not judged; raises JudgeError where the server does not judge.
    """
    async with AsyncJudgeClient(address) as client:
        card = (await client.version()).judge
        model = card.model
        work.console.print(
            f"{address} judges with {model.name}, weight version {model.weight_version}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

        async def ask(request: JudgeRequest) -> JudgeResponse | str:
            sent: Any = request.model_dump(exclude_none=True, exclude_defaults=True)
            try:
                answer = await client.judge(**sent)
            except JudgeError as error:
                if error.status in OWN_FAULT:
                    return str(error)
                raise
            return JudgeResponse.model_validate(answer.model_dump())

        left = work.open(model.name, model.weight_version, card.revision)
        await work.judge(ask, left, REMOTE_AT_A_TIME)
    return work.finish()


def row_of(solution: FileSolution, answer: JudgeResponse) -> dict[str, Any]:
    """A row of labelled steps, as `evaluate`, `annotate` and other makers' libraries read them.

    ``labels`` are the judge's, None where it named no verdict; ``first_wrong`` is what the input's
    own labels said.
    """
    known = {
        "answer": solution.answer,
        "final_answer_correct": solution.final_answer_correct,
        "first_wrong": solution.first_wrong,
    }
    return {
        "id": solution.name,
        "problem": solution.problem,
        "steps": [step.text for step in answer.steps],
        "labels": [LABELS[step.verdict] for step in answer.steps],
        "step_scores": [step.score for step in answer.steps],
        "first_negative": answer.first_negative,
        "analyses": [step.analysis for step in answer.steps],
        "votes": [[LABELS[vote] for vote in step.votes] for step in answer.steps],
        "tokens": answer.usage.judge_tokens,
        "judge": answer.model.name,
        "weight_version": answer.model.weight_version,
        **{name: value for name, value in known.items() if value is not None},
    }


def _request(solution: FileSolution, job: JudgeJob) -> JudgeRequest | str:
    """What the service is asked, or why it would refuse."""
    body = {
        "problem": solution.problem,
        "steps": solution.steps,
        "response": solution.response,
        "votes": job.votes,
        "temperature": job.temperature,
    }
    try:
        request = JudgeRequest.model_validate(body)
        steps_of(request)
    except ValidationError as error:
        return explain(error.errors())[0]
    except UserError as error:
        return str(error)
    return request


def _row_index(one: tuple[FileRow, str]) -> int:
    return one[0].index
