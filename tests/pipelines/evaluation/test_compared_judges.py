"""`stepwiser evaluate` with judges from elsewhere beside the run's own, on two benchmarks."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.session.session import Session
from pipelines.stages.runner import run_stage
from stepwiser.config import RunConfig, load_config
from stepwiser.data.records import Judgement, StepItem
from stepwiser.errors import UserError
from stepwiser.evaluation.embedded_edits import RANGES, written
from stepwiser.judging.step_models import ScorerOptions, StepScorer
from stepwiser.report import build_report
from stepwiser.run.store import RunStore, read_rows
from tests.stepwiser.judging.scorer_models import make_scorer
from tests.support.chat_server import ChatServer, chat_server, refused, said
from tests.support.hub_cache import add_to_cache, use_cache
from tests.support.paths import ROOT

EMBEDDED = ROOT / "configs" / "embedded.yaml"
SETS = ("steps", "prmbench")
BAD = "this step breaks the server"


def _write(folder: Path) -> dict[str, list[StepItem]]:
    """Two sets to score on and one for thresholds, no problem in two of them."""
    items = written(RANGES[0], 18, 5)
    parts = {"steps": items[0::3], "prmbench": items[1::3], "split": items[2::3]}
    parts["steps"][0].steps[-1] = BAD
    for name in ("steps", "split"):
        rows = [asdict(item) for item in parts[name]]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    rng = random.Random(0)
    lines = [
        {
            "idx": item.id,
            "modified_question": item.problem,
            "modified_process": item.steps,
            "error_steps": [] if item.label == -1 else [item.label + 1, len(item.steps)],
            "classification": "multi_solutions" if item.label == -1 else rng.choice(["circular"]),
        }
        for item in parts["prmbench"]
    ]
    (folder / "prmbench.json").write_text(json.dumps(lines))
    return parts


def _config(folder: Path, url: str, **changes: Any) -> RunConfig:
    judges = [
        {"name": "qwen", "kind": "qwen_prm", "model": str(folder / "qwen"), "threshold": "chosen"},
        {"name": "shepherd", "kind": "math_shepherd", "model": "lab/shepherd"},
        {
            "name": "critic", "kind": "endpoint", "model": "m", "url": url,
            "key_variable": "CRITIC_KEY", "input_price": 2.0, "output_price": 10.0,
        },
    ]  # fmt: skip
    evaluate = {
        "source": str(folder / "steps.json"),
        "name": "steps",
        "more": [{"source": str(folder / "prmbench.json"), "name": "prmbench"}],
        "threshold_set": {"source": str(folder / "split.json"), "name": "split"},
        "judges": judges,
        "votes": 2,
        "faithfulness": 2,
        "calibration_trajectories": 0,
        **changes,
    }
    config = load_config(EMBEDDED, [f"run_dir={folder / 'run'}", "judge_model=embedded"])
    raw = config.model_dump(mode="json")
    raw["evaluate"] = raw["evaluate"] | {"forced_prefix": ""} | evaluate
    raw["engine"] |= {"count": 1, "dtype": "float32"}
    raw["cluster"] |= {"cpus": 2}
    raw["evaluation_data"]["limit"] = raw["data"]["limit"] = 20
    return RunConfig.model_validate(raw)


def _evaluate(config: RunConfig) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=200, force_terminal=False)
    with Session(config, console) as session:
        session.start(["evaluate"])
        return run_stage(session, "evaluate"), console.export_text()


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as made:

        def rule(body: dict[str, Any], number: int) -> Any:
            text = body["messages"][0]["content"]
            return (
                refused(400, "no") if BAD in text else said(f"\\boxed{{{'NP'[number % 2]}ositive}}")
            )

        made.rule = rule
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a Hub cache that knows one of the scorers by name."""
    made = tmp_path_factory.mktemp("compared")
    make_scorer("qwen_prm", made / "qwen")
    make_scorer("math_shepherd", made / "shepherd")
    add_to_cache(made / "hf", "lab/shepherd", made / "shepherd")
    with pytest.MonkeyPatch.context() as patch:
        use_cache(patch, made / "hf")
        yield made


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, list[StepItem]]:
    return _write(folder)


@pytest.fixture(scope="module")
def evaluated(
    folder: Path, sets: dict[str, list[StepItem]], server: ChatServer
) -> tuple[dict[str, Any], str]:
    return _evaluate(_config(folder, server.url))


@pytest.mark.slow
def test_every_judge_has_a_figure_on_every_set(
    evaluated: tuple[dict[str, Any], str], folder: Path
) -> None:
    metrics, shown = evaluated
    judges = ["start", "qwen", "shepherd", "critic"]
    assert list(metrics["judges"]) == judges
    pairs = {(row["judge"], row["benchmark"]): row for row in metrics["benchmarks"]}
    assert list(pairs) == [(judge, name) for judge in judges for name in SETS]
    for (judge, name), row in pairs.items():
        assert row["metric"] == ("PRMScore" if name == "prmbench" else "F1, first wrong step")
        assert row["seconds"] > 0 and row["prompt_tokens"] > 0
        assert (row["generated_tokens"] > 0) == (judge in ("start", "critic"))
        assert row["votes"] == (2 if judge in ("start", "critic") else 1)
        assert judge in shown and name in shown
        if name == "prmbench":
            scored = metrics["judges"][judge]["prmbench"]["prmbench"]
            assert row["value"] == pytest.approx(scored["prm_score"])
            assert set(scored["categories"]) == {"circular", "multi_solutions"}
    assert RunStore(folder / "run").models().keys() == {"evaluate.judges.shepherd.model"}
    # PRMBench is no subset of ProcessBench: one set alone has no average.
    assert metrics["judges"]["start"]["average"] is None
    with (folder / "run" / "reports" / "benchmarks.csv").open() as file:
        read = list(csv.DictReader(io.StringIO(file.read())))
    assert [(row["judge"], row["benchmark"]) for row in read] == list(pairs)
    assert r"\toprule" in (folder / "run" / "reports" / "benchmarks.tex").read_text()


@pytest.mark.slow
def test_scores_are_the_scorers_and_verdicts_its_thresholds(
    evaluated: tuple[dict[str, Any], str], folder: Path, sets: dict[str, list[StepItem]]
) -> None:
    metrics, _ = evaluated
    chosen = metrics["judges"]["qwen"]["threshold"]
    assert chosen["items"] == len(sets["split"]) and 0 <= chosen["value"] <= 1
    assert "threshold" not in metrics["judges"]["shepherd"]
    for name, form, threshold in (
        ("qwen", "qwen_prm", chosen["value"]), ("shepherd", "math_shepherd", 0.5)
    ):  # fmt: skip
        scorer = StepScorer(ScorerOptions(form, str(folder / name), dtype="float32"))  # type: ignore[arg-type]
        expected = scorer.score([(item.problem, item.steps) for item in sets["steps"]])
        rows = read_rows(folder / "run" / "judgements" / f"{name}.parquet", Judgement)
        scores = {(row.item_id, row.step_index): row for row in rows}
        for item, found in zip(sets["steps"], expected, strict=True):
            for i, score in enumerate(found.scores):
                row = scores[item.id, i]
                assert row.score == pytest.approx(score, abs=1e-4)
                assert row.verdict is (row.score >= threshold)


@pytest.mark.slow
def test_what_an_endpoint_did_not_answer_is_counted_and_asked_again(
    evaluated: tuple[dict[str, Any], str], folder: Path, server: ChatServer
) -> None:
    metrics, shown = evaluated
    pairs = {(row["judge"], row["benchmark"]): row for row in metrics["benchmarks"]}
    row = pairs["critic", "steps"]
    assert row["failed"] == 2 and row["no_verdict"] > 0
    assert row["price"] == pytest.approx(
        (row["prompt_tokens"] * 2.0 + row["generated_tokens"] * 10.0) / 1e6
    )
    assert "critic: 2 requests failed, and are no verdict: HTTP 400: no" in shown
    asked = len(server.asked)
    server.rule = lambda body, number: said("\\boxed{Positive}")
    again, _ = _evaluate(_config(folder, server.url))
    assert len(server.asked) == asked + 2  # what was answered, and every other judge, is kept
    pairs = {(row["judge"], row["benchmark"]): row for row in again["benchmarks"]}
    assert pairs["critic", "steps"]["failed"] == 0
    for name in ("start", "qwen", "shepherd"):
        assert again["judges"][name] == metrics["judges"][name]
    page = Path(build_report(RunStore(folder / "run"))).read_text()
    assert "Judges and benchmarks" in page and "shepherd" in page


def test_a_threshold_set_that_shares_a_problem_is_refused(
    folder: Path, sets: dict[str, list[StepItem]], server: ChatServer, tmp_path: Path
) -> None:
    """Said before a model is loaded."""
    shared = tmp_path / "shared.json"
    shared.write_text(json.dumps([asdict(item) for item in sets["split"] + sets["steps"][:1]]))
    changes = {"threshold_set": {"source": str(shared), "name": "shared"}}
    config = _config(folder, server.url, **changes)
    config = config.model_copy(update={"run_dir": str(tmp_path / "run")})
    session = Session(config)
    session.store.open(config)
    with pytest.raises(UserError, match="shared has 1 problems of the set steps"):
        run_stage(session, "evaluate")


@pytest.mark.parametrize(
    ("judge", "more", "words"),
    [
        ({"kind": "endpoint", "model": "m"}, {}, "needs a url"),
        ({"kind": "generative", "model": "m", "threshold": 0.3}, {}, "threshold says nothing"),
        ({"kind": "qwen_prm", "model": "m", "url": "http://x"}, {}, "url says nothing"),
        (
            {"kind": "qwen_prm", "model": "m", "threshold": "chosen"},
            {},
            "no evaluate.threshold_set",
        ),
        (
            {"kind": "qwen_prm", "model": "m", "threshold": "chosen"},
            {"source": "a.json", "threshold_set": {"source": "a.json", "name": "a"}},
            "is a set that is scored",
        ),
        ({"kind": "rlhflow", "model": "m", "mark": "-"}, {}, "leave mark out"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    judge: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.model_validate({"evaluate": {"judges": [{"name": "x", **judge}], **more}})
    with pytest.raises(ValueError, match="start is a judge of every run"):
        RunConfig.model_validate({"evaluate": {"judges": [{**judge, "name": "start"}]}})
