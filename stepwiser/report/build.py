"""From a run directory to `reports/report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from stepwiser.report.blocks import ABSENT, Bar, Estimate, Section
from stepwiser.report.curves import training
from stepwiser.report.drawing.charts import swatch
from stepwiser.report.drawing.figures import Bars
from stepwiser.report.judges import benchmarks, calibration, processbench
from stepwiser.report.labels import labels
from stepwiser.report.reading import RunData, mapping
from stepwiser.report.solutions import examples
from stepwiser.report.solving import solving
from stepwiser.report.stages import annotation, base_model, cost, segmentation
from stepwiser.report.trust import trust
from stepwiser.report.uses import headline, selecting
from stepwiser.run.memory.kills import kill_notices
from stepwiser.run.store import RunStore

SECTIONS = (
    segmentation,
    annotation,
    labels,
    training,
    processbench,
    benchmarks,
    calibration,
    trust,
    solving,
    selecting,
    examples,
    base_model,
    cost,
)


def build_report(store: RunStore) -> str:
    """Write the page of a run, from whatever stages have run so far; returns its path or address.

    The page is one file that loads nothing from anywhere. Same run, same page.

    Raises UserError when the page cannot be written.
    """
    data = RunData(store)
    sections: list[Section] = [made for make in SECTIONS if (made := make(data)) is not None]
    page = Page(
        str(data.config.get("name") or store.place.rpartition("/")[2]),
        _facts(data.config, data.environment),
        sections,
        versions=[(str(k), str(v)) for k, v in mapping(data.environment, "packages").items()],
        config=yaml.safe_dump(data.config, sort_keys=False) if data.config else "",
        headline=headline(data),
        notices=[*data.notices, *kill_notices(store.read_kills())],
    )
    with store.writing(PAGE) as temporary:
        # Text of a model may hold half a surrogate pair, which UTF-8 has no bytes for.
        temporary.write_text(page.html(), "utf-8", errors="replace")
    return store.called(PAGE)


PAGE = "reports/report.html"


@dataclass(frozen=True)
class Page:
    """What a page shows; it loads nothing from anywhere."""

    name: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    versions: Sequence[tuple[str, str]] = ()
    config: str = ""
    headline: Sequence[Bars] = ()
    notices: Sequence[str] = ()

    def html(self) -> str:
        package = resources.files("stepwiser.report") / "static"
        template = _environment().from_string((package / "page.html.j2").read_text("utf-8"))
        style = Markup((package / "style.css").read_text("utf-8"))
        return template.render(vars(self), style=style)


def _facts(config: dict[str, Any], environment: dict[str, Any]) -> list[tuple[str, str]]:
    """The line below the title."""
    shown = (
        ("started", str(environment.get("started") or ABSENT).replace("T", " ")),
        ("seed", config.get("seed")),
        ("policy", _model(config, environment, "policy_model")),
        (
            "judge starts from",
            _model(config, environment, "judge_model") or _policy_of_steps(config),
        ),
        ("problems", mapping(config, "data").get("source")),
        ("Python", environment.get("python")),
        ("machine", environment.get("platform")),
        ("CPUs", environment.get("cpus")),
    )
    return [(name, str(value)) for name, value in shown if value is not None]


def _model(config: dict[str, Any], environment: dict[str, Any], key: str) -> Any:
    """A model's name, with the commit that it stood for."""
    commit = mapping(environment, "models", key).get("commit")
    named = config.get(key)
    return f"{named} ({str(commit)[:8]})" if named and commit else named


def _policy_of_steps(config: dict[str, Any]) -> str:
    """The policy that wrote what is judged: paragraphs need no tuning."""
    paragraphs = mapping(config, "prompts").get("steps") == "paragraphs"
    return "the policy" if paragraphs else "the chunk-tuned policy"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"swatch": swatch, "ABSENT": ABSENT}
    environment.tests |= {
        "bar": lambda cell: isinstance(cell, Bar),
        "estimate": lambda cell: isinstance(cell, Estimate),
    }
    return environment
