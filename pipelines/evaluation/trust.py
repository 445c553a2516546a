"""What else is asked of every judge: faithfulness, agreement of votes, other sets, other ranges.

And of the data: whether an evaluation set holds problems of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.evaluation.items import file_items, file_name
from pipelines.evaluation.judgements import JudgementCache
from pipelines.session.session import Session
from stepwiser.config.evaluation import EvaluateConfig
from stepwiser.data.records import Judgement, StepItem
from stepwiser.errors import UserError
from stepwiser.evaluation.agreement import agreement
from stepwiser.evaluation.contamination import check
from stepwiser.evaluation.faithfulness import (
    Edit,
    Follows,
    Probe,
    corrupt_text,
    make_probes,
    names_the_number,
    questions_of,
    score_probes,
)
from stepwiser.evaluation.processbench import ProcessBenchScore, average_scores
from stepwiser.evaluation.scoring import score_judge
from stepwiser.evaluation.step_scores import score_prmbench

PROTOCOLS = ("official", "by_final_answer")

CONTAMINATION = "reports/contamination.json"


@dataclass(frozen=True)
class TrustChecks:
    """The questions of a run, the same for every judge."""

    items: Sequence[StepItem]
    """The main set."""
    more: Mapping[str, Sequence[StepItem]]
    beyond: Mapping[str, Sequence[StepItem]]
    """Written solutions within the range of training and beyond it; none for files."""
    probes: Sequence[Probe]
    follows: Follows
    repairs: bool
    """Whether somebody knows the right step."""

    def facts(self, session: Session) -> dict[str, Any]:
        """What is true whoever judges: sizes, and problems that training has seen."""
        return {
            "more": {name: _sizes(items) for name, items in self.more.items()},
            "beyond": {name: _sizes(items) for name, items in self.beyond.items()},
            "repairs": self.repairs,
            "contamination": _contamination(session, self),
        }

    def sets(self, main: str) -> dict[str, Sequence[StepItem]]:
        """The sets of labelled steps by name, ``main`` the main one's."""
        return {main: self.items, **self.more}

    def rows(
        self, cache: JudgementCache, name: str, items: Sequence[StepItem], config: EvaluateConfig
    ) -> list[Judgement]:
        """A judge's judgements on one of `sets`."""
        return cache.items(*self.place(cache, name, config), items, config.votes)

    def place(self, cache: JudgementCache, name: str, config: EvaluateConfig) -> tuple[str, str]:
        """Table and unit of a judge's judgements on one of `sets`."""
        if name == config.name:
            return "judgements", cache.unit
        return "judgements/more", f"{cache.unit}-{file_name(name)}"

    def score(
        self, session: Session, cache: JudgementCache, scored: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Everything else about one judge, whose score on the main set is known."""
        config = session.config.evaluate
        main = cache.items("judgements", cache.unit, self.items, config.votes)
        result: dict[str, Any] = {"agreement": agreement(self.items, main)}
        for part, sets, votes in (("more", self.more, config.votes), ("beyond", self.beyond, 1)):
            scores = {}
            for name, items in sets.items():
                unit = f"{cache.unit}-{file_name(name)}"
                rows = cache.items(f"judgements/{part}", unit, items, votes)
                scores[name] = score_judge(items, rows, config.bins)
            result[part] = scores
        files = {} if config.source == "embedded" else {config.name: scored}
        files |= result["more"]
        # A set with kinds of mistakes is no subset of ProcessBench.
        kinds = {name: items for name, items in self.sets(config.name).items() if has_kinds(items)}
        files = {name: row for name, row in files.items() if name not in kinds}
        result["average"] = average(files) if len(files) > 1 else None
        result["prmbench"] = {
            name: score_prmbench(items, self.rows(cache, name, items, config))
            for name, items in kinds.items()
        }
        questions = questions_of(self.probes)
        rows = cache.questions("judgements/faithfulness", cache.unit, questions, 1)
        result["faithfulness"] = score_probes(self.probes, rows, self.follows)
        return result


def has_kinds(items: Sequence[StepItem]) -> bool:
    """Whether a set's solutions have kinds of mistakes, as PRMBench's do."""
    return any(item.category for item in items)


def average(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over sets of the same weight (paper section 4), of one judgment and of Maj@k, by
    protocol."""
    return {
        kind: {
            protocol: asdict(
                average_scores({name: _score_of(row[kind][protocol]) for name, row in sets.items()})
            )
            for protocol in PROTOCOLS
        }
        for kind in ("single", "majority")
    }


def _score_of(row: Mapping[str, Any]) -> ProcessBenchScore:
    return ProcessBenchScore(
        **{key: value for key, value in row.items() if key != "undefined_because"}
    )


def prepare_trust_checks(session: Session, items: Sequence[StepItem]) -> TrustChecks:
    """Load or make every further set."""
    config = session.config.evaluate
    embedded = config.source == "embedded"
    more = {one.name: file_items(session, one.name, one.source, one.limit) for one in config.more}
    beyond: dict[str, list[StepItem]] = {}
    edits: tuple[Edit, Edit | None] = corrupt_text, None
    follows: Follows = names_the_number
    if embedded:
        from stepwiser.evaluation.embedded_edits import (
            RANGES,
            analysis_follows,
            corrupt,
            repair,
            written,
        )

        edits, follows = (corrupt, repair), analysis_follows
        if config.beyond:
            seed = session.config.evaluation_data.seed
            beyond = {span.name: written(span, config.beyond, seed) for span in RANGES}
    return TrustChecks(
        items=items,
        more=more,
        beyond=beyond,
        probes=make_probes(items, config.faithfulness, session.config.seed, *edits),
        follows=follows,
        repairs=embedded,
    )


def _contamination(session: Session, trust: TrustChecks) -> dict[str, Any]:
    """Compare all problems of training with all of evaluation; the matches are listed in a file."""
    config = session.config
    training = [p.question for p in session.problems("train", config.data.limit)]
    if session.store.units("judge_prompts"):  # of given trajectories, the problems are theirs
        table = session.store.read_table("judge_prompts", "label")
        training += table.column("question").to_pylist()
    items = {config.evaluate.name: trust.items, **trust.more, **trust.beyond}
    sets = {name: [(item.id, item.problem) for item in found] for name, found in items.items()}
    missing: dict[str, str] = {}
    try:
        held = session.problems("evaluation", config.evaluation_data.limit)
        sets["evaluation_data"] = [(problem.problem_id, problem.question) for problem in held]
    except UserError as error:
        # Only `solve` needs these problems: judges can be scored where they are out of reach.
        missing["evaluation_data"] = str(error)
    found = check(training, sets, config.evaluate.contamination_ngram) | {"not_compared": missing}
    session.store.write_json(CONTAMINATION, found)
    # The report lists a few; the file has all.
    brief = {name: {**row, "matches": row["matches"][:5]} for name, row in found["sets"].items()}
    return {**found, "sets": brief}


def _sizes(items: Sequence[StepItem]) -> dict[str, int]:
    wrong = sum(item.label != -1 for item in items)
    return {"wrong": wrong, "right": len(items) - wrong}
