"""The report: whole runs, half runs, hostile text, and missing figures."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stepwiser.data.records import ChunkValue, Judgement
from stepwiser.evaluation.processbench import first_negative
from stepwiser.report import build_report
from stepwiser.report.blocks import Estimate, Note, brief, duration
from stepwiser.report.build import SECTIONS
from stepwiser.report.drawing.charts import Axis, log_ticks, nice_ticks, smooth, tick_texts
from stepwiser.report.reading import RunData, number
from stepwiser.report.solving import solving
from stepwiser.report.uses import headline
from stepwiser.run.store import RunStore
from tests.stepwiser.report.report_run import (
    HOSTILE,
    full_run,
    write_annotation,
    write_config,
    write_costs,
    write_segment,
    write_training,
)


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails where a tag closes another one."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "path", "rect", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text("utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data + " "

    @property
    def labels(self) -> str:
        """What is read out in place of charts."""
        return "; ".join(value for name, value in self.attributes if name == "aria-label")

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return full_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: RunStore) -> Page:
    return Page(Path(build_report(run)))


def test_a_full_run_shows_every_section(page: Page) -> None:
    assert "not run yet" not in page.words
    for text in (
        "embedded-cpu",
        "segmented exactly 376 (98.9%)",
        "text outside of <chunk>",
        "Rel-Effective (used)",
        "Verdict accuracy on held-out labels",
        "F1, official: by label, Maj@8",
        "F1, by final answer (paper), one judgement",
        "Against Monte-Carlo values",
        "Accuracy against tokens, StepWiser judge (after RL)",
        "Accuracy against seconds, discriminative SFT baseline",
        "0.652 [0.613, 0.691] of 5",
        "early stop of 8",
        "judge's pick of the right ones − random right answer",
        "true: ✗ first wrong step",
        "all (sum; memory, CPUs, GPUs: most)",
    ):
        assert text in page.words, text


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not {"script", "img", "iframe", "object"} & page.tags.keys()
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href"):
            assert value.startswith(("#", "data:")), value


def test_markup_in_chunks_is_text(page: Page) -> None:
    assert HOSTILE in page.words


def test_the_same_run_gives_the_same_page(run: RunStore) -> None:
    first = Path(build_report(run)).read_bytes()
    assert Path(build_report(run)).read_bytes() == first


def test_figures_are_those_of_the_metrics(run: RunStore, page: Page) -> None:
    metrics = run.read_metrics("evaluate")
    assert metrics is not None
    for row in metrics["judges"].values():
        for protocol in ("official", "by_final_answer"):
            assert f"{row['single'][protocol]['f1']:.3f}" in page.words
            assert f"{row['majority'][protocol]['f1']:.3f}" in page.words
        assert f"{row['calibration_values']['brier']:.3f}" in page.words
    assert "0.752 [0.715, 0.789]" in page.words  # 0.752 ± 1.96 · 0.019
    assert "+0.013 [-0.009, +0.035]" in page.words
    assert "24 min 00 s" in page.words  # 40 s + 80 s + … + 320 s


def test_what_a_vote_of_the_same_cost_does_better_is_said(run: RunStore, page: Page) -> None:
    """Of a judge, from the intervals of its differences to that vote."""
    metrics = run.read_metrics("solve")
    assert metrics is not None
    for text in (
        "StepWiser judge (after RL). Better than majority vote at the same total tokens: "
        "chunk-reset (+0.100).",
        "start (before RL). Not to be told from majority vote at the same total tokens: "
        "chunk-reset (-0.024); ",
    ):
        assert text in page.words, text
    assert "Majority vote is better" not in page.words
    for row in [*metrics["search"].values(), *metrics["methods"]]:
        row["over_majority"]["mean"] = -0.2
    data = Changed(run, "solve", metrics)
    words = [block.text for block in solving(data).blocks if isinstance(block, Note)]
    assert len(words) == 3
    for text in words:
        assert (
            "Majority vote is better at the same total tokens than: chunk-reset (-0.200); " in text
        )


def test_a_run_that_knew_chunk_reset_alone_is_still_shown(run: RunStore, tmp_path: Path) -> None:
    metrics = run.read_metrics("solve")
    assert metrics is not None
    for key in ("seconds", "problems_at_once", "engines"):
        del metrics["plain"][key]
    del metrics["methods"]
    known = {
        "accuracy", "accuracy_se", "accepted_tokens", "rejected_tokens", "judge_tokens",
        "total_tokens", "forced", "majority_at_cost",
    }  # fmt: skip
    for row in metrics["majority"]:
        del row["seconds"]
    for name, row in metrics["search"].items():
        metrics["search"][name] = {key: row[key] for key in known}
    store = RunStore(tmp_path)
    store.write_metrics("solve", metrics)
    page = Page(Path(build_report(store)))
    for text in (
        "Accuracy against tokens",
        "chunk-reset, StepWiser judge (after RL)",
        "0.752 [0.715, 0.789]",
        "0.652 [0.613, 0.691] of 5",
        # Its paired difference was kept of the trained judge alone.
        "StepWiser judge (after RL). Better than majority vote at the same total tokens: "
        "chunk-reset (+0.100).",
    ):
        assert text in page.words, text
    assert "Accuracy against seconds" not in page.words and "start (before RL). " not in page.words


def test_every_judge_has_a_row_a_benchmark(run: RunStore, page: Page) -> None:
    metrics = run.read_metrics("evaluate")
    assert metrics is not None
    assert "Judges and benchmarks" in page.words
    for row in metrics["benchmarks"]:
        assert f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in page.words
        scored = metrics["judges"][row["judge"]]["prmbench"]["prm"]
        assert f"{scored['categories']['circular']['prm_score']:.3f}" in page.words
    assert "Positive from 0.432 on, chosen on 77 solutions" in page.words


def test_what_can_be_trusted_is_shown(run: RunStore, page: Page) -> None:
    metrics = run.read_metrics("evaluate")
    assert metrics is not None
    for row in metrics["judges"].values():
        assert f"{row['agreement']['kappa']:.3f} [" in page.words
        assert f"{row['beyond']['6 operations']['single']['official']['f1']:.3f}" in page.words
        for found in row["faithfulness"]["kinds"].values():
            assert found["verdict"] is None or f"{found['verdict']['mean']:.3f}" in page.words
    for text in (
        "within the training range and beyond it: F1, official: by label",
        "Further sets: F1, by final answer (paper)",
        "6 operations: 20 / 20",
        "Accuracy of the majority by its margin",
        "Evaluation problems also in training",
        "held out: not compared, dataset away/x cannot be loaded",
        "embedded 119 2 2",
    ):
        assert text in page.words, text


def test_values_of_unfinished_units_are_not_read(run: RunStore, page: Page) -> None:
    everything = ChunkValue.from_table(run.read_table("values", "annotate"))
    assert f"values of {len(everything) // 2} chunks" in page.labels


def test_a_solution_says_what_the_judge_found(run: RunStore, page: Page) -> None:
    data = RunData(run)
    shown = 0
    for item in [*data.items[:4], *data.items[60:64]]:
        rows = [data.judgements["judge"][item.id, i] for i in range(len(item.steps))]
        prediction = first_negative([row.verdict for row in rows])
        sign = "✓" if prediction == item.label else "✗"
        said = "no step" if prediction == -1 else f"step {prediction + 1}"
        assert f"{sign} refuses {said}; " in page.words
        assert all(" ".join(row.analysis.split()) in page.words for row in rows)
        shown += len(rows)
    assert page.tags["article"] == 12
    assert page.words.count("first wrong step") >= 4 and shown >= 24


def test_solutions_of_a_set_outside_the_run(run: RunStore, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    source = run.root / "evaluation" / "embedded.json"
    config = {"name": "x", "evaluate": {"source": str(source)}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    rows = [row for row in RunData(run).judgements["judge"].values() if row.item_id > "embedded-1"]
    store.write_table("judgements", "judge", Judgement.to_table(rows))
    judged = {row.item_id for row in rows if row.item_id.startswith("embedded")}
    assert {item.id for item in RunData(store).items} == judged
    assert Page(Path(build_report(store))).tags["article"] == 4


def test_steps_done_again_after_a_crash_count_once(run: RunStore) -> None:
    (curve,) = RunData(run).curves.values()
    assert [row["step"] for row in curve] == list(range(150))
    assert all("reward" in row and "entropy" in row for row in curve)


def test_a_run_of_two_stages_says_what_is_missing(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    write_config(store)
    write_segment(store)
    write_annotation(store, random.Random(1))
    write_costs(store, "segment", "annotate")
    page = Page(Path(build_report(store)))
    for stage in ("label", "train", "evaluate", "solve", "select"):
        assert f"not run yet: stepwiser {stage}" in page.words, stage
    assert "not run yet: stepwiser segment" not in page.words
    assert "no judge has judged them yet" in page.words
    assert page.tags["article"] == 4  # annotated solutions, with their values


def test_an_empty_run_directory_has_a_page_too(tmp_path: Path) -> None:
    page = Page(Path(build_report(RunStore(tmp_path / "nothing"))))
    assert page.words.count("not run yet") == 11


class Changed(RunData):
    """A run of which one stage measured something else."""

    def __init__(self, store: RunStore, stage: str, metrics: dict[str, Any]) -> None:
        super().__init__(store)
        self._stage, self._metrics = stage, metrics

    def metrics(self, stage: str) -> dict[str, Any]:
        return self._metrics if stage == self._stage else {}


@pytest.mark.parametrize(
    "stage", ["segment", "annotate", "label", "train", "evaluate", "solve", "select", "finetune"]
)
def test_no_key_is_taken_for_granted(run: RunStore, tmp_path: Path, stage: str) -> None:
    """Take each key of a stage's metrics away in turn, then put what is no number in its place."""
    metrics = run.read_metrics(stage)
    assert metrics is not None
    if stage == "evaluate":  # one judge's keys are another's
        metrics["judges"] = {"judge": metrics["judges"]["judge"]}
    if stage == "solve":
        metrics["search"] = {"judge": metrics["search"]["judge"]}
        metrics["methods"] = metrics["methods"][10:14]
    text = json.dumps(metrics)
    for path in paths(metrics):
        for wrong in (None, "text", float("nan"), [], {}):
            changed = json.loads(text)
            node = changed
            for key in path[:-1]:
                node = node[key]
            if wrong is None:
                del node[path[-1]]
            else:
                node[path[-1]] = wrong
            data = Changed(RunStore(tmp_path), stage, changed)
            for make in SECTIONS:
                make(data)
            headline(data)


def paths(node: Any, depth: int = 4) -> list[tuple[Any, ...]]:
    """Paths of a nested value; of lists, and of objects far down, the first element only."""
    if isinstance(node, dict):
        pairs = list(node.items())[: None if depth != 3 else 2]
    elif isinstance(node, list) and node:
        pairs = [(0, node[0])]
    else:
        return []
    found: list[tuple[Any, ...]] = [(key,) for key, _ in pairs]
    for key, value in pairs:
        if depth:
            found += [(key, *rest) for rest in paths(value, depth - 1)]
    return found


def test_a_page_of_nonsense_is_still_a_page(run: RunStore, tmp_path: Path) -> None:
    def spoil(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: spoil(value) for key, value in node.items()}
        return [spoil(value) for value in node] if isinstance(node, list) else "<i>?"

    store = RunStore(tmp_path)
    for file in (run.root / "metrics").glob("*.json"):
        store.write_json(f"metrics/{file.name}", spoil(json.loads(file.read_text())))
    page = Page(Path(build_report(store)))
    assert page.tags["i"] < 200 and "nan" not in page.words.split()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for name in ("metrics/solve.json", "values/u.parquet", "environment.json", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{ no")
    store.curve.write_text('{"step": 0, "reward"\n')
    page = Page(Path(build_report(store)))
    for name in ("metrics/solve.json", "values/u.parquet", "environment.json", "config.yaml"):
        assert f"{name} cannot be read" in page.words
    assert "metrics.jsonl: unreadable lines left out: 1" in page.words


def test_intervals() -> None:
    assert Estimate.normal(0.99, 0.02) == Estimate(0.99, pytest.approx(0.9508, abs=1e-4), 1.0)
    assert Estimate.normal(1.0, 0.0) == Estimate(1.0)  # all alike: no interval
    assert Estimate.normal(None, 0.1) is None
    wilson = Estimate.share(0.5, 100)
    assert wilson is not None and wilson.interval == "[0.404, 0.596]"


def test_numbers() -> None:
    assert number({"a": {"b": 2}}, "a", "b") == 2.0
    assert number({"a": True}, "a") is None and number({"a": float("nan")}, "a") is None
    assert [brief(v) for v in (0.0, 2.9e-5, 12.0, 0.4217, 1843220.0)] == [
        "0", "2.9e-05", "12", "0.422", "1.8e+06",
    ]  # fmt: skip
    assert [duration(v) for v in (3.21, 61.0, 7260.0)] == ["3.2 s", "1 min 01 s", "2 h 01 min"]


def test_ticks() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(0, 149) == [0, 50, 100]
    assert log_ticks(60, 1200) == [100, 200, 500, 1000]
    assert tick_texts([0, 20000, 40000]) == ["0", "20k", "40k"]
    assert tick_texts([0, 2e-5]) == ["0", "2e-5"]
    assert Axis("", 10, 1000, log=True).fraction(100) == pytest.approx(0.5)


def test_smoothing_is_centred_and_keeps_a_line() -> None:
    line = [2.0 * i for i in range(100)]
    means, window = smooth(line)
    assert window == 5 and means == pytest.approx(line)
    assert smooth([1.0, 5.0]) == ([1.0, 5.0], 1)


def test_long_curves_stay_small(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    write_training(store, random.Random(2), steps=2000)
    path = Path(build_report(store))
    assert path.stat().st_size < 1_500_000
    assert not re.search(r"\bnan\b", path.read_text("utf-8"))
