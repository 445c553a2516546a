"""Probes of faithfulness: edits that do what they say, and shares against counts by hand."""

from __future__ import annotations

import math
import random

import pytest

from stepwiser.data.records import Judgement, StepItem
from stepwiser.evaluation.embedded_edits import (
    RANGES,
    Worked,
    analysis_follows,
    corrupt,
    read_analysis,
    repair,
    written,
)
from stepwiser.evaluation.faithfulness import (
    NUMBER,
    REPAIRED,
    UNCHANGED,
    Probe,
    Question,
    change_number,
    corrupt_text,
    make_probes,
    names_the_number,
    questions_of,
    score_probes,
)
from stepwiser.tasks import first_error, make_problems, parse_problem, step_is_right
from stepwiser.tasks.arithmetic import parse_step, solution_chunks
from stepwiser.tasks.transcripts import glance_answer, recompute_answer

QUESTION = "ana has 64 coins. buys 21. doubles them. sells 3. how many?"
STEPS = ["buys 64+21=85\n", "doubles 85*2=170\n", "sells 170-3=167\n\\boxed{167}"]


def item(steps: list[str], item_id: str = "i", question: str = QUESTION) -> StepItem:
    label = first_error(question, steps)
    return StepItem(item_id, question, steps, label, label == -1, "hand")


# --- edits of the embedded task -------------------------------------------------------------------


def test_corruptions_are_wrong_in_what_they_say() -> None:
    seen = set()
    for number, problem in enumerate(make_problems(60, seed=3)):
        steps = solution_chunks(problem)
        rng = random.Random(number)
        for index, text in enumerate(steps):
            true = parse_step(text)
            assert true is not None
            for kind, (edited, truth) in corrupt(
                rng, item(steps, question=problem.question), index
            ).items():
                seen.add(kind)
                step = parse_step(edited)
                assert step is not None and not step_is_right(problem, index, edited)
                assert truth == str(true.result) and step.result != true.result
                assert (step.boxed is None) == (true.boxed is None)
                changed = {
                    name
                    for name in ("verb", "left", "symbol", "operand")
                    if getattr(step, name) != getattr(true, name)
                }
                assert changed == {"result": set(), "operand": {"operand"}}.get(kind, {"symbol"})
                if kind != "result":  # right in itself, wrong for the problem
                    left, right = step.left, step.operand
                    assert step.result == (left + right if step.symbol == "+" else left - right)
    assert seen == {"result", "operand", "operation"}


def test_repair_gives_the_true_step() -> None:
    wrong = item([STEPS[0], "doubles 85*2=160\n", "sells 160-3=157\n\\boxed{157}"])
    assert wrong.label == 1
    assert repair(random.Random(0), wrong, 1) == {REPAIRED: (STEPS[1], "170")}
    # What stops early, or goes on too long, has no step to put right.
    assert repair(random.Random(0), item(STEPS[:2]), 1) == {}
    assert repair(random.Random(0), item([*STEPS, "sells 167-3=164\n"]), 3) == {}


def test_probes_share_their_first_question_and_are_the_same_again() -> None:
    items = [item(STEPS, f"right-{i}") for i in range(4)]
    items += [item(["buys 64+21=86\n", *STEPS[1:]], f"wrong-{i}") for i in range(4)]
    probes = make_probes(items, 2, 5, corrupt, repair)
    assert probes == make_probes(items, 2, 5, corrupt, repair)
    assert probes != make_probes(items, 2, 6, corrupt, repair)
    kinds = [probe.kind for probe in probes]
    assert kinds.count(UNCHANGED) == kinds.count("result") == kinds.count(REPAIRED) == 2
    for probe in probes:
        assert probe.before.history == probe.after.history
        assert probe.right_before == (probe.kind != REPAIRED)
        assert probe.right_after == (probe.kind in (UNCHANGED, REPAIRED))
    asked = questions_of(probes)
    assert len({question.question_id for question in asked}) == len(asked)
    steps = {probe.before.question_id for probe in probes}
    assert len(steps) == 4 and len(asked) == 4 + len(probes)
    solutions = {question_id.split("/")[0] for question_id in steps}
    assert len(solutions) == 4, "one step a solution"


# --- reading the analysis ----------------------------------------------------------------------


def probe(after: str, kind: str = "result", truth: str = "85") -> Probe:
    before = Question("b", QUESTION, (), STEPS[0])
    return Probe(kind, before, Question("a", QUESTION, (), after), True, False, truth)


def test_a_true_check_follows_and_others_do_not() -> None:
    problem = parse_problem(QUESTION)
    wrong = "buys 64+21=95\n"
    said, _ = recompute_answer(problem, [], wrong)
    assert read_analysis(said) == Worked(value=85, written=95, differ=True)
    assert analysis_follows(probe(wrong), said) is True
    # The check of the step as it stood before: what it reads is not what stands there now.
    old, _ = recompute_answer(problem, [], STEPS[0])
    assert analysis_follows(probe(wrong), old) is False
    assert analysis_follows(probe(STEPS[0], UNCHANGED), old) is True
    # The right value, and then blind to the difference.
    assert analysis_follows(probe(wrong), said.replace("89 differ", "89 same")) is False
    blind = said.replace(" differ, ", " same, ")
    assert blind != said and analysis_follows(probe(wrong), blind) is False
    # The step's own wrong value taken over.
    assert analysis_follows(probe(wrong), said.replace("89 differ", "99 same")) is False
    assert analysis_follows(probe(wrong), glance_answer(False)) is None
    assert read_analysis("") is None


@pytest.mark.parametrize("seed", range(3))
def test_every_worked_check_is_read(seed: int) -> None:
    for number, problem in enumerate(make_problems(40, seed)):
        steps = solution_chunks(problem)
        for index, text in enumerate(steps):
            edits = corrupt(random.Random(number), item(steps, question=problem.question), index)
            for edited, truth in [(text, str(problem.values[index + 1])), *edits.values()]:
                said, right = recompute_answer(problem, steps[:index], edited)
                worked = read_analysis(said)
                assert worked is not None and str(worked.value) == truth
                assert worked.written == parse_step(edited).result  # type: ignore[union-attr]
                assert right == (edited == text)


# --- scores -----------------------------------------------------------------------------------


def row(question_id: str, verdict: bool | None, analysis: str = "") -> Judgement:
    return Judgement(question_id, "j", 0, [], verdict, None, analysis, 1, 0)


def test_shares_by_hand() -> None:
    """Three steps; the first verdict on the third is wrong, so it says nothing."""
    probes, rows = [], []
    second = {
        ("s1", UNCHANGED): (True, "yes"), ("s1", "result"): (False, "yes"),
        ("s1", "operand"): (True, "yes"), ("s2", UNCHANGED): (True, ""),
        ("s2", "result"): (None, "no"), ("s3", UNCHANGED): (True, "yes"),
        ("s3", "result"): (False, "yes"),
    }  # fmt: skip
    for name in ("s1", "s2", "s3"):
        rows.append(row(f"{name}/before", name != "s3"))
    for (name, kind), (verdict, analysis) in second.items():
        before = Question(f"{name}/before", "p", (), "x")
        after = Question(f"{name}/{kind}", "p", (), "y")
        probes.append(Probe(kind, before, after, True, kind == UNCHANGED, "t"))
        rows.append(row(after.question_id, verdict, analysis))
    found = score_probes(probes, rows, lambda _, text: {"yes": True, "no": False}.get(text))
    result = found["kinds"]["result"]
    assert (result["pairs"], result["asked"], result["missing"], result["worked"]) == (3, 2, 1, 2)
    assert result["verdict"] == {"mean": 0.5, "standard_error": pytest.approx(0.5), "steps": 2}
    assert result["analysis"]["mean"] == 0.5
    assert [result[k] for k in ("both", "verdict_only", "analysis_only", "neither")] == [1, 0, 0, 1]
    assert found["kinds"][UNCHANGED]["verdict"]["mean"] == 1.0
    assert found["kinds"][UNCHANGED]["worked"] == 1
    assert found["kinds"]["operand"]["analysis_only"] == 1
    # Steps weigh the same however many edits they had: (1/2 + 0) / 2.
    assert found["corrupted"]["verdict"]["mean"] == 0.25
    assert found["corrupted"]["verdict"]["standard_error"] == pytest.approx(
        math.sqrt(2 * 0.25**2 / 1 / 2)
    )


def test_nothing_asked_has_no_share() -> None:
    probes = [probe("buys 64+21=95\n")]
    found = score_probes(probes, [row("b", None), row("a", False)], analysis_follows)
    assert found["kinds"]["result"]["verdict"] is None
    assert found["kinds"]["result"]["asked"] == 0


# --- any text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "old"),
    [
        ("So 16 - 3 - 4 = 9 eggs are left.", "9"),
        ("Step 2: she pays $1,200.50 in all", "1,200.50"),
        ("1. He has \\(18 - 6 = 12\\) left", "12"),
        ("The total is 18 \\times 3 = \\$54.", "54"),
        ("x_1 and 3D need 7 parts", "7"),
        ("half of it, 0.05, is lost", "0.05"),
    ],
)
def test_one_number_changes_and_keeps_its_form(step: str, old: str) -> None:
    for seed in range(20):
        found = change_number(random.Random(seed), step)
        assert found is not None and found[1] == old
        before, _, after = step.rpartition(old)
        edited = found[0]
        assert edited.startswith(before) and edited.endswith(after) and edited != step
        new = edited[len(before) : len(edited) - len(after)]
        assert ("," in new) == ("," in old) or "," in old
        assert len(new.partition(".")[2]) == len(old.partition(".")[2])
        assert 0 < abs(float(new.replace(",", "")) - float(old.replace(",", ""))) <= 10


@pytest.mark.parametrize("step", ["", "No number here.", "Step 3: we add them", "x_1 = y^2", "007"])
def test_text_without_a_number_is_left_alone(step: str) -> None:
    assert change_number(random.Random(0), step) is None


def test_an_analysis_names_the_number_only_if_it_was_not_shown() -> None:
    text = StepItem("t", "16 eggs, 3 eaten, 4 baked.", ["16 - 3 - 4 = 9 eggs."], -1, True, "")
    (probe_,) = (p for p in make_probes([text], 1, 0, corrupt_text, None) if p.kind == NUMBER)
    assert probe_.truth == "9"
    assert names_the_number(probe_, "it should be 9, not that") is True
    assert names_the_number(probe_, "it should be 19") is False
    assert names_the_number(probe_, " ") is None
    shown = StepItem("t", "Is it 9? 16 eggs, 3 eaten, 4 baked.", text.steps, -1, True, "")
    (probe_,) = (p for p in make_probes([shown], 1, 0, corrupt_text, None) if p.kind == NUMBER)
    assert probe_.truth == "" and names_the_number(probe_, "it should be 9") is None


# --- written solutions -------------------------------------------------------------------------


@pytest.mark.parametrize("span", RANGES, ids=lambda span: span.name)
def test_written_solutions_are_of_their_range(span) -> None:
    items = written(span, 40, 1)
    assert items == written(span, 40, 1) != written(span, 40, 2)
    assert len({item.problem for item in items}) == 40
    assert [item.label == -1 for item in items] == [True, False] * 20
    for one in items:
        made = parse_problem(one.problem)
        assert (len(made.operations) > 5 or max(made.values) > 99) == (span is not RANGES[0])
        assert one.label == first_error(made, one.steps) and len(one.steps) == len(made.operations)
        assert all(parse_step(step) for step in one.steps)
        if one.label == -1:
            assert one.steps == solution_chunks(made) and one.final_answer_correct
