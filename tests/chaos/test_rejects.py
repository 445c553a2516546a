"""Problems that keep failing: each is rejected with its reason, and takes no other one along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwiser.data.records import Trajectory, content_id
from stepwiser.run.store import RunStore
from stepwiser.run.units import read_summary
from stepwiser.tasks import ArithmeticProblem, make_problems
from tests.chaos.fragile import ENDS_ENGINES, ENDS_LABELERS
from tests.chaos.given import make_run
from tests.chaos.killing import Family, finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

HEALTHY, PER_UNIT = 33, 4


def _id(problem: ArithmeticProblem) -> str:
    return content_id(problem.question, problem.answer)


def test_problems_that_keep_failing_are_rejected_alone(tmp_path: Path) -> None:
    drawn = make_problems(1000, seed=9)
    engines, labelers = (
        next(p for p in drawn if words in p.question) for words in (ENDS_ENGINES, ENDS_LABELERS)
    )
    kind = (ENDS_ENGINES, ENDS_LABELERS)
    healthy = [p for p in drawn if not any(words in p.question for words in kind)][:HEALTHY]
    problems = [*healthy[:9], engines, *healthy[9:22], labelers, *healthy[22:]]
    folder = tmp_path / "run"
    arguments = make_run(folder, problems, PER_UNIT)
    # One more, for which vLLM itself refuses a prompt: its first step fills the context.
    far = drawn[-1]
    steps = [f"buys 1+{'1' * 240}=2\n", f"\\boxed{{{far.answer}}}"]
    with (folder.parent / "given.jsonl").open("a") as file:
        row = {"id": "far", "problem": far.question, "answer": far.answer, "steps": steps}
        file.write(json.dumps(row) + "\n")
    arguments.append("annotate.max_tokens=300")

    with Family("annotate", *arguments, module="tests.chaos.fragile") as family:
        output = family.finish(code=2)
    words = " ".join(output.split())
    assert "Traceback" not in output, output
    assert "3 problems could not be annotated" in words
    assert "rejects/annotate.json" in output.replace("\n", "")

    store = RunStore(folder)
    rejects = {row["problem_id"]: row for row in _rejects(folder)}
    assert rejects.keys() == {_id(engines), _id(labelers), content_id(far.question, far.answer)}
    print({row["reason"] for row in rejects.values()})
    assert "with no other request in them" in rejects[_id(engines)]["reason"]
    assert "labeler's process ends" in rejects[_id(labelers)]["reason"]
    assert "does not fit" in rejects[content_id(far.question, far.answer)]["reason"]
    for row in rejects.values():
        assert row["problem_id"] in json.dumps(read_summary(store, row["unit"])["rejects"])
    rows = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    assert {t.problem_id for t in rows} == {_id(p) for p in healthy}
    assert len(rows) == 2 * HEALTHY and len(finished(folder)) == len(problems) // PER_UNIT + 1
    assert not list(folder.rglob("*.tmp"))

    # A second start has nothing to do, and says again that something is missing. Who removes a
    # summary has its unit tried again, here by a command that has no weak spot.
    for row in rejects.values():
        if row["problem_id"] != content_id(far.question, far.answer):
            (folder / "units" / f"{row['unit']}.json").unlink()
    with Family("annotate", *arguments) as family:
        output = family.finish(code=2)
    assert "1 problem could not be annotated" in " ".join(output.split())
    with Family("annotate", *arguments) as family:
        output = family.finish(code=2)
    assert "every unit is already done" in output
    assert "1 problem could not be annotated" in " ".join(output.split())
    assert [row["problem_id"] for row in _rejects(folder)] == [content_id(far.question, far.answer)]
    rows = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    assert {t.problem_id for t in rows} == {_id(p) for p in (*healthy, engines, labelers)}


def _rejects(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((folder / "rejects" / "annotate.json").read_text())
    return rows
