"""docs/scale.md and its picture, from what a run found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scale_sim.nodes import Measured
from benchmarks.scale_sim.services import A100_7B, Services
from benchmarks.scale_sim.simulation import Outcome, bottleneck, efficiency
from benchmarks.scale_sim.work import LIMIT, RUNAWAY
from stepwiser.report.ablation import standalone
from stepwiser.report.drawing.charts import Axis, Mark, Plot

BARS = {8: 0.95, 64: 0.9, 256: 0.8}
PARTS = (
    "labelers", "checkers", "driver", "registry", "GCS", "cores of the head",
    "network of the head", "storage",
)  # fmt: skip


def picture(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Efficiency over engines."""
    ticks = [(float(n), f"{n:,}") for n in (1, 8, 64, 256, 1024)]
    plot = Plot(
        Axis("engines", 1.0, 1200.0, log=True, labels=ticks), Axis("efficiency", 0.0, 1.1), 560, 260
    )
    for colour, outcomes in enumerate(runs.values()):
        points = [(float(o.engines), efficiency(outcomes[0], o)) for o in outcomes]
        plot.line(points, colour)
        plot.marks([Mark(x, y, label=f"{y:.2f}") for x, y in points[1:]], colour)
    return standalone(plot.svg("Throughput of N engines over N times that of one"))


def table(outcomes: Sequence[Outcome], bars: Mapping[int, float]) -> list[str]:
    lines = [
        "| engines | tokens/s | hours | efficiency | bar | before the end |",
        "|---|---|---|---|---|---|",
    ]
    one = outcomes[0]
    for o in outcomes:
        whole = o.middle_tokens_per_s / (o.engines * one.middle_tokens_per_s)
        bar = f"≥ {bars[o.engines]}" if o.engines in bars else ""
        lines.append(
            f"| {o.engines:,} | {o.tokens_per_s:,.0f} | {o.seconds / 3600:.1f} | "
            f"{efficiency(one, o):.3f} | {bar} | {whole:.3f} |"
        )
    return lines


def use_table(outcomes: Sequence[Outcome]) -> list[str]:
    heads = " | ".join(f"{o.engines:,}" for o in outcomes)
    lines = [f"| part | {heads} |", f"|---|{'---|' * len(outcomes)}"]
    for part in PARTS:
        cells = " | ".join(_share(o.use[part]) for o in outcomes)
        lines.append(f"| {part} | {cells} |")
    return lines


def _share(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def service_table(s: Services) -> list[str]:
    """What was measured, by the number of engines where it grows with them."""
    sizes = sorted(s.route_s)
    lines = [f"| milliseconds of CPU | {' | '.join(map(str, sizes))} |"]
    lines.append(f"|---|{'---|' * len(sizes)}")
    growing: tuple[tuple[str, Mapping[int, float]], ...] = (
        ("labeler, choice of an engine, a request", s.route_s),
        ("labeler, news of the engines, a second", s.news_s),
        ("registry, a second (without Ray's calls)", s.registry_s),
        ("driver, its looks, a second", s.tick_s),
    )
    for name, known in growing:
        lines.append(f"| {name} | {' | '.join(_ms(known[n]) for n in sizes)} |")
    flat = (
        ("labeler, a request with its answer, short samples", s.submit_s + s.answer_s),
        ("labeler, a sample as long as a solution, more", s.sample_s),
        ("labeler, to write a unit of eight problems", s.write_s),
        ("checker, an answer that Math-Verify has to compare", s.check_s),
        ("driver, a unit", s.unit_s),
        ("a call of an actor: who calls; who is called", (s.call_s, s.called_s)),
        ("Ray's daemons on the head, a request", s.daemons_s),
        ("GCS, a second and node", s.gcs_node_s),
    )
    lines += ["", "| the same however many engines | milliseconds of CPU |", "|---|---|"]
    for name, seconds in flat:
        both = seconds if isinstance(seconds, tuple) else (seconds,)
        lines.append(f"| {name} | {'; '.join(map(_ms, both))} |")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def check_table(checks: Sequence[Mapping[str, float]]) -> list[str]:
    lines = [
        "| nodes | tokens/s, run | tokens/s, simulated | run / simulated |",
        "|---|---|---|---|",
    ]
    for row in checks:
        run, told = row["measured"], row["predicted"]
        lines.append(f"| {row['engines']:g} | {run:,.0f} | {told:,.0f} | {run / told:.3f} |")
    return lines


TEXT = """# How far annotation scales

A simulation, with service times that were measured: no cluster of this size was at hand.
`python -m benchmarks.scale_sim --only simulation` made all that stands here.

![efficiency over engines](results/scale.svg)

Engines of a 7B on an A100 ({full:,.0f} tokens/s when full, which is what the paper's fourteen days
come to, [cost.md](cost.md)); one head of {s.head_cpus} cores with {s.labelers} labelers;
{problems:,} problems, or {per_engine:,} an engine where that is less. The paper has three times as
many: the end of a run weighs three times as much here as it would there.

{paper}

*Efficiency*: tokens/s of the whole run over N times those of one engine in the middle of its run,
where no end shows. *Before the end*: the same of the middle of the run, where all have work. What
is missing of 1 there was waited for at a central part; what the whole run has less is its end, when
the longest answers are left.

**The bottleneck at 1,024 engines: {bottleneck}**, the first that will have no room. Shares of what
each part can do, in the middle of the run (of the cores: what would run if there were enough):

{paper_use}

Engines {faster:.1f} times as fast (a smaller model, a newer card) ask as much more of everything
central; at 1,024 the bottleneck is {fast_bottleneck}:

{fast}

{fast_use}

## Against real runs

One Ray of several nodes on one machine, an engine a node; the program's own stage, labelers, pool
and registry. The engines are stubs that answer at a pace of their own whatever else the machine
does (`benchmarks/scale_sim/paced_engine.py`); the simulation got the lengths of those very answers.
Tokens/s are those of the middle, from a fifth of the tokens to three fifths: the simulation starts
no processes, which takes a labeler seconds.

{checks}

## What was measured

On one slow core that others shared, hence in CPU time. The classes are the program's own: `Router`,
`EngineRegistry`, `Admission`, `ThroughputMonitor`, `PrometheusMetrics`, `write_unit`, and the
annotate stage with an engine that answers at once.

{services}

Stated, not measured: a request to S3 takes {put:.0f} ms, of which a unit has {s.puts}, and S3 takes
{s.puts_per_s:,.0f} puts/s of a prefix; a message takes {hop:.0f} ms; the head's network has
{s.head_gbits:g} Gbit/s, a sample has {s.sample_bytes:,.0f} bytes. Math-Verify is asked about
{s.new_answers:.1%} of the samples: 18.8 % of MATH-500's answers are such as it has to compare
(counted), and 6 % of a problem's samples are taken to have an answer that none before had.

## How it is simulated

- **Engines** take `step + c × sequence` seconds for a token of each of their c sequences, 512 at
  most: {step:.1f} ms to read the weights, and what makes a full engine that fast. Requests wait in
  the labelers and are bound to the engine with least work that has room, by news that is up to a
  second old, as in `actors/pool/routing.py`.
- **Problems** have the paper's means. Lengths spread as the solutions of ProcessBench's MATH part
  do (σ of the logarithm 0.61, half of the variance a problem's own), and so do numbers of steps.
  {runaway:.0%} of the samples never end and are cut at {limit:,} tokens: assumed, and what the end
  waits for.
- **Admission** is the program's own, asked once a simulated second. Driver, labelers and their
  checkers do one thing at a time; what exceeds the head's cores makes all of it take longer; a
  registry that is behind tells old news.
- Every sample's end is an event, twenty million in the largest runs, compiled by Numba.

## What is not modelled

Loading models and pulling images; nodes that come, go or are slow; prefix caches, which engines
lose a little of with every further client; the size of the KV cache (512 sequences always fit);
losses on the network; other clusters that join; the stages after annotation.

```json
{line}
```
"""


def page(
    measured: Measured,
    runs: Mapping[str, Sequence[Outcome]],
    figures: Mapping[str, Any],
    problems: int,
    per_engine: int,
) -> str:
    """The whole page; ``figures``: the line that the benchmark ends with."""
    paper, fast, services = runs["paper"], runs["fast"], measured.services
    return TEXT.format(
        full=A100_7B.full,
        s=services,
        problems=problems,
        per_engine=per_engine,
        paper="\n".join(table(paper, BARS)),
        bottleneck=figures["bottleneck"],
        paper_use="\n".join(use_table(paper)),
        faster=fast[0].middle_tokens_per_s / paper[0].middle_tokens_per_s,
        fast_bottleneck=bottleneck(fast[0], fast[-1]),
        fast="\n".join(table(fast, {})),
        fast_use="\n".join(use_table(fast)),
        checks="\n".join(check_table(measured.checks)),
        services="\n".join(service_table(services)),
        put=1000 * services.put_s,
        hop=1000 * services.hop_s,
        step=1000 * A100_7B.step_s,
        runaway=RUNAWAY,
        limit=LIMIT,
        line=json.dumps(figures),
    )
