"""Dashboards and alerts ask for what the program and Ray expose, by names and labels they have."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipelines.monitoring import prometheus
from serve.access.queue import FairQueue
from serve.metrics import Metrics
from tests.support.paths import ROOT

FOLDER = ROOT / "cluster" / "grafana"
DASHBOARDS = sorted(FOLDER.glob("*.json"))
RAY_LABELS = {"SessionName", "NodeAddress", "Component", "Version", "WorkerId"}
SCRAPED = {"instance", "job"}
NODE_METRICS = (
    "node_gpus_utilization", "node_mem_used", "node_mem_total", "node_disk_free", "node_disk_usage",
)  # fmt: skip
VARIABLES = {"$__rate_interval": "5m", "$run": ".*", "$job": ".*", "$price": "2"}


def _of_annotation_and_training() -> dict[str, set[str]]:
    """Names and labels of every Ray metric that `pipelines.monitoring.prometheus` makes."""
    made: dict[str, set[str]] = {}

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            made[f"ray_{name}"] = {*tag_keys, *RAY_LABELS, *SCRAPED}

        def set(self, value: float, tags: dict[str, str]) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "Gauge", Recorded)
        patch.setattr(prometheus, "Counter", Recorded)
        prometheus.PrometheusMetrics("run", "0/1")
        prometheus.LearnerMetrics("run", 10)
    return made


def _of_the_judge() -> dict[str, set[str]]:
    """Names and labels at the service's `/metrics`, after an answer."""
    metrics = Metrics(FairQueue(1, 1))
    metrics.answered("/v1/judge", 200, 0.5)
    metrics._tokens.labels("judge").inc()
    metrics._verdicts.labels("Positive").inc()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set(SCRAPED)).update(sample.labels)
    return found


def _of_ray() -> dict[str, set[str]]:
    from ray.dashboard.modules.reporter import reporter_agent

    source = inspect.getsource(reporter_agent)
    for name in NODE_METRICS:
        assert f'"{name}"' in source, f"this Ray has no {name}"
    labels = {"ip", "GpuIndex", "GpuDeviceName", *RAY_LABELS, *SCRAPED}
    return {f"ray_{name}": labels for name in NODE_METRICS}


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    return _of_annotation_and_training() | _of_the_judge() | _of_ray() | {"up": set(SCRAPED)}


def _panels() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"], target


def _alerts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"], rule


def _filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        if (child := getattr(node, name, None)) is not None:
            yield from _walk(child)
    for child in getattr(node, "args", None) or ():
        yield from _walk(child)


def _asked(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """Metrics with the labels they are chosen by, and the labels of `by`, `on` and such."""
    metrics: dict[str, set[str]] = {}
    grouped: set[str] = set()
    for node in _walk(promql_parser.parse(_filled(expression))):
        if isinstance(node, promql_parser.VectorSelector):
            chosen = {matcher.name for matcher in node.matchers.matchers}
            metrics.setdefault(str(node.name), set()).update(chosen)
        modifier = getattr(node, "modifier", None)
        for labels in (modifier, getattr(modifier, "matching", None)):
            grouped.update(getattr(labels, "labels", None) or ())
    return metrics, grouped


EXPRESSIONS = [*_panels(), *_alerts()]


@pytest.mark.parametrize(("where", "expression"), [e[:2] for e in EXPRESSIONS])
def test_metrics_and_labels_are_there(
    where: str, expression: str, exposed: dict[str, set[str]]
) -> None:
    metrics, grouped = _asked(expression)
    assert metrics, where
    known: set[str] = set()
    for name, chosen in metrics.items():
        assert name in exposed, f"{where} asks for {name}, which nothing exposes"
        assert chosen <= exposed[name], f"{where}: {name} has no {chosen - exposed[name]}"
        known |= exposed[name]
    # `le` is the histogram's own.
    assert grouped <= known, f"{where} groups by {grouped - known}"


@pytest.mark.parametrize(("where", "expression", "target"), list(_panels()))
def test_legends_name_labels_that_are_left(where: str, expression: str, target: Any) -> None:
    shown = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
    assert shown <= _asked(expression)[1], f"{where}: {target['legendFormat']}"


def test_what_is_exposed_is_shown(exposed: dict[str, set[str]]) -> None:
    """A figure that nobody can see is not worth its place."""
    asked = {name for _, expression, _ in EXPRESSIONS for name in _asked(expression)[0]}
    ours = {name for name in exposed if "stepwiser" in name}
    unseen = {n for n in ours - asked if not n.endswith(("_count", "_sum", "_created"))}
    assert unseen <= {
        "ray_stepwiser_annotated_units_total",
        "ray_stepwiser_annotated_chunks_total",
        "ray_stepwiser_annotated_rollouts_total",
        "ray_stepwiser_annotated_tokens_total",
    }, unseen


def test_the_page_has_them_all(exposed: dict[str, set[str]]) -> None:
    """docs/annotation.md and docs/training.md name every metric of theirs."""
    text = "".join((ROOT / "docs" / f"{n}.md").read_text() for n in ("annotation", "training"))
    text += " ".join(
        f"{head}{one}{tail}"
        for head, many, tail in re.findall(r"(stepwiser_\w*){([\w,]+)}(\w*)", text)
        for one in many.split(",")
    )
    missing = {
        n for n in exposed if n.startswith("ray_step") and n.removeprefix("ray_") not in text
    }
    assert not missing, missing


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"].startswith("stepwiser-") and board["title"]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps([panel["targets"] for panel in board["panels"]])
    assert {f"${name}" for name in variables} - {"$source"} == set(re.findall(r"\$(?!__)\w+", text))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and panel["description"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for _, _, rule in _alerts()]
    assert len(set(names)) == len(names) >= 10
    for _, _, rule in _alerts():
        assert rule["annotations"].keys() == {"summary", "action"} and rule["for"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = _asked(rule["expr"])[1]
        assert shown <= (grouped | SCRAPED | {"run"}), rule["alert"]


def test_prometheus_follows_the_nodes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs.keys() == {"ray", "judge"}
    ((file,),) = (found["files"] for found in jobs["ray"]["file_sd_configs"])
    assert Path(file).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
