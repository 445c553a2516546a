"""Do verdict and analysis follow the step? A right step is made wrong, a wrong one right.

Each probe asks the judge twice: about a step as it stands, and about the same step after one edit,
with the same problem and history. Only probes whose first verdict was right say anything about
following; of those it is counted how often the second verdict is right too, and how often the
analysis says what is now true. The kind ``unchanged`` edits nothing: what it lacks of 1 is the
judge's own unsteadiness, which no other kind can be expected to do better than.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwiser.annotation.statistics import mean_and_error
from stepwiser.data.records import Judgement, StepItem
from stepwiser.evaluation.scoring import judgement
from stepwiser.judging.judges import Judge

UNCHANGED = "unchanged"
REPAIRED = "repaired"


@dataclass(frozen=True)
class Question:
    """One step to judge."""

    question_id: str
    problem: str
    history: tuple[str, ...]
    step: str


@dataclass(frozen=True)
class Probe:
    """Two questions that differ by one edit of the step."""

    kind: str
    """What was edited; ``unchanged`` for nothing, ``repaired`` for a wrong step made right."""
    before: Question
    after: Question
    right_before: bool
    """Whether the step as it stood is right: what the first verdict should say."""
    right_after: bool
    truth: str
    """What an analysis of the edited step has to say (`Follows` knows how); empty where unknown."""


Edit = Callable[[random.Random, StepItem, int], Mapping[str, tuple[str, str]]]
"""From (draws, solution, index of a step) to edited steps with their ``truth``, by kind."""

Follows = Callable[[Probe, str], bool | None]
"""Whether the analysis of the edited step says what is true; None where it cannot be told."""


def make_probes(
    items: Sequence[StepItem], count: int, seed: int, corrupt: Edit, repair: Edit | None
) -> list[Probe]:
    """Probes on at most ``count`` right and ``count`` wrong steps, no two of one solution.

    Args:
        items: solutions with the index of their first wrong step.
        count: steps of either kind.
        seed: of what is chosen and how it is edited.
        corrupt: makes a right step wrong; steps that it does not edit are passed over.
        repair: makes the first wrong step right; None where nobody knows how.
    """
    rng = random.Random(f"faithfulness-{seed}")
    order = list(items)
    rng.shuffle(order)
    probes: list[Probe] = []
    corrupted = repaired = 0
    for item in order:
        if repair and item.label != -1 and repaired < count:
            edits = repair(rng, item, item.label)
            probes += [_probe(kind, item, item.label, *edit) for kind, edit in edits.items()]
            repaired += bool(edits)
            continue
        right = list(range(len(item.steps) if item.label == -1 else item.label))
        rng.shuffle(right)
        for index in right if corrupted < count else ():
            edits = corrupt(rng, item, index)
            if edits:
                truth = next(iter(edits.values()))[1]
                probes.append(_probe(UNCHANGED, item, index, item.steps[index], truth))
                probes += [_probe(kind, item, index, *edit) for kind, edit in edits.items()]
                corrupted += 1
                break
    return probes


def _probe(kind: str, item: StepItem, index: int, step: str, truth: str) -> Probe:
    def question(name: str, text: str) -> Question:
        return Question(f"{item.id}/{index}/{name}", item.problem, tuple(item.steps[:index]), text)

    right = index != item.label
    return Probe(
        kind,
        question("before", item.steps[index]),
        question(kind, step),
        right_before=right,
        right_after=kind in (UNCHANGED, REPAIRED),
        truth=truth,
    )


def questions_of(probes: Sequence[Probe]) -> list[Question]:
    """Every question once: kinds of edits share what they are compared with."""
    both = (question for probe in probes for question in (probe.before, probe.after))
    return list({question.question_id: question for question in both}.values())


async def ask(
    judge: Judge, name: str, questions: Sequence[Question], done: Callable[[], None] = lambda: None
) -> list[Judgement]:
    """Judge every question; rows carry its id as item."""

    async def one(question: Question) -> Judgement:
        verdict = await judge.judge(question.problem, question.history, question.step)
        done()
        return judgement(question.question_id, name, len(question.history), verdict)

    return list(await asyncio.gather(*(one(question) for question in questions)))


def score_probes(
    probes: Sequence[Probe], judgements: Sequence[Judgement], follows: Follows
) -> dict[str, Any]:
    """Counts and shares by kind, and of all corruptions together (`corrupted`).

    For each kind: ``pairs``; ``asked``, the pairs whose first verdict was right; ``verdict``, the
    share of those whose second verdict is right too, with its standard error; ``missing``, those
    whose second answer has no verdict (they do not follow); ``worked``, those whose second analysis
    can be read; ``analysis``, the share of ``worked`` whose analysis says what is true; and of
    ``worked`` the counts ``both``, ``verdict_only``, ``analysis_only``, ``neither``.
    """
    rows = {row.item_id: row for row in judgements}
    by_kind: dict[str, list[Probe]] = {}
    for probe in probes:
        by_kind.setdefault(probe.kind, []).append(probe)
    result = {kind: _score(members, rows, follows) for kind, members in by_kind.items()}
    corruptions = [probe for probe in probes if probe.kind not in (UNCHANGED, REPAIRED)]
    return {"kinds": result, "corrupted": _score(corruptions, rows, follows)}


def _score(
    probes: Sequence[Probe], rows: Mapping[str, Judgement], follows: Follows
) -> dict[str, Any]:
    asked = [p for p in probes if rows[p.before.question_id].verdict is p.right_before]
    verdicts: dict[str, list[float]] = {}
    analyses: dict[str, list[float]] = {}
    table = dict.fromkeys(("both", "verdict_only", "analysis_only", "neither"), 0)
    for probe in asked:
        row = rows[probe.after.question_id]
        verdict = row.verdict is probe.right_after
        step = probe.before.question_id
        verdicts.setdefault(step, []).append(float(verdict))
        analysis = follows(probe, row.analysis)
        if analysis is not None:
            analyses.setdefault(step, []).append(float(analysis))
            cell = ("neither", "analysis_only", "verdict_only", "both")[2 * verdict + analysis]
            table[cell] += 1
    return {
        "pairs": len(probes),
        "asked": len(asked),
        "missing": sum(rows[p.after.question_id].verdict is None for p in asked),
        "verdict": _share(verdicts),
        "worked": sum(table.values()),
        "analysis": _share(analyses),
        **table,
    }


def _share(by_step: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Mean over steps, each of the same weight however many edits it had; None without any."""
    means = [sum(values) / len(values) for values in by_step.values()]
    if not means:
        return None
    mean, error = mean_and_error(means)
    return {"mean": mean, "standard_error": error if len(means) > 1 else None, "steps": len(means)}


# --- any text ---------------------------------------------------------------------------------

NUMBER = "number"
"""Kind of the edit that any text allows."""

# No part of a longer number, of a name (x_1, 3D), or of an enumeration (“Step 2:”, “1. ”).
_NUMBER = re.compile(r"(?<![\w.,^{_])\d+(?:,\d{3})*(?:\.\d+)?(?![\w^]|[.,]\d)")
_ENUMERATION = re.compile(r"(?:^|\n)\s*(?:\W*step\s*)?\d+\s*[.:)]|\bstep\s+\d+", re.IGNORECASE)
_AFTER_EQUALS = re.compile(r"[=≈]\s*[\\$£€({\[]*\s*$")


def change_number(rng: random.Random, step: str) -> tuple[str, str] | None:
    """``step`` with one number a little changed and written as before; and the number taken away.

    A number after an equals sign goes first, for there a change is surely a mistake. The rest of
    the step is left alone, so that it may contradict itself, as a slip does. None without a number
    that can be changed.
    """
    enumerated = [match.span() for match in _ENUMERATION.finditer(step)]
    numbers = [
        match
        for match in _NUMBER.finditer(step)
        if not any(start <= match.start() < end for start, end in enumerated)
        and not (len(match.group()) > 1 and match.group()[0] == "0" and match.group()[1] != ".")
    ]
    if not numbers:
        return None
    results = [match for match in numbers if _AFTER_EQUALS.search(step[: match.start()])]
    match = rng.choice(results or numbers)
    old = match.group()
    whole, _, decimals = old.replace(",", "").partition(".")
    value = int(whole + decimals)
    delta = rng.choice([d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0])
    digits = str(value + delta).zfill(len(decimals) + 1)
    cut = len(digits) - len(decimals)
    whole = f"{int(digits[:cut]):,}" if "," in old else digits[:cut]
    new = f"{whole}.{digits[cut:]}" if decimals else whole
    return step[: match.start()] + new + step[match.end() :], old


def corrupt_text(rng: random.Random, item: StepItem, index: int) -> dict[str, tuple[str, str]]:
    """One number changed. ``truth`` is the number taken away, where nothing else shows it."""
    edited = change_number(rng, item.steps[index])
    if edited is None:
        return {}
    step, old = edited
    shown = " ".join([item.problem, *item.steps[:index], step])
    return {NUMBER: (step, "" if old in _numbers(shown) else old)}


def names_the_number(probe: Probe, analysis: str) -> bool | None:
    """Whether the analysis names the number that was taken away, which it can only have worked out.

    None where the number can also be read off the prompt, or there is no analysis.
    """
    if probe.kind != NUMBER or not probe.truth or not analysis.strip():
        return None
    return probe.truth in _numbers(analysis)


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text))
