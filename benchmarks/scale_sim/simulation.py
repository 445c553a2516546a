"""One run, from the first problem to the last unit in the storage.

Once a second, or as often as it manages, the driver reads what the engines report, sets how many
problems may be under way by the program's own `Admission`, and hands out units. What the head's
machine has to do in a second beyond a second of its cores makes all that it does take longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.scale_sim.events import advance, costs, hand_out, start
from benchmarks.scale_sim.services import EngineRate, Services, at
from benchmarks.scale_sim.work import Work
from pipelines.annotation.dispatch import MAX_LABELERS
from stepwiser.annotation.admission import COLD_START, Admission, Reading

PERIOD_S = 1.0
TAIL = "the last problems"
"""The bottleneck where engines idle at the end more than they wait for anything before."""


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    engines: int
    seconds: float
    tokens_per_s: float
    middle_tokens_per_s: float
    """Between a fifth of the tokens and three fifths, where neither end shows."""
    use: Mapping[str, float]
    """Share of what each central part can do, mean of the same time; above 1 it cannot keep up."""


def responses(work: Work) -> int:
    """Samples of a problem's first request."""
    return int(work.samples[work.requests[0] + 1] - work.samples[work.requests[0]])


def simulate(work: Work, rate: EngineRate, services: Services, engines: int) -> Outcome:
    labelers = min(services.labelers, engines)
    state, cost = start(work, rate, engines, labelers), costs(rate, services, engines, work.unit)
    admission = Admission(responses(work))
    registry, tick = at(services.registry_s, engines), at(services.tick_s, engines)
    news = at(services.news_s, engines)
    nodes = -(-engines // services.node_engines)
    gcs = services.gcs_node_s * nodes
    registry += engines * services.called_s
    driver = tick + labelers * services.call_s
    seen: deque[dict[int, Reading]] = deque()
    late = unit = 0
    backlog = now = 0.0
    whole = work.tokens
    marks: list[tuple[float, float, np.ndarray, int, int, int]] = []
    busy = 0.0
    ended = False
    while not ended:
        # --- what the driver sees and does
        share = int(state.held_back.sum()) / engines
        seen.append(
            {
                i: Reading(running, waiting + round(share), rate.slots)
                for i, (running, waiting) in enumerate(
                    zip(state.running.tolist(), state.waiting.tolist(), strict=True)
                )
            }
        )
        # A registry that is behind tells what was so some seconds ago.
        backlog = max(0.0, backlog + registry * PERIOD_S - PERIOD_S)
        late = int(backlog)
        while len(seen) > late + 1:
            seen.popleft()
        allowed = admission.observe(seen[0], int(state.inside.sum())) or COLD_START
        state.allowed[:] = [max(1, (allowed + i) // labelers) for i in range(labelers)]
        unit = hand_out(state, cost, unit)
        marks.append(
            (now, float(state.counts[3]), state.busy.copy(), int(state.counts[1]),
             int(state.counts[4]), 0)
        )  # fmt: skip
        # --- what happens until it looks again
        units_before, sent_before = int(state.counts[1]), int(state.counts[4])
        state.busy[:labelers] += news
        state.free_at[:labelers] = np.maximum(state.free_at[:labelers], now) + news * state.clock[1]
        period = max(PERIOD_S, driver * state.clock[1])
        ended = advance(state, cost, now + period)
        now = float(state.clock[0])
        spent = float(state.busy.sum())
        units, sent = int(state.counts[1]) - units_before, int(state.counts[4]) - sent_before
        head = spent - busy + units * services.unit_s + sent * services.daemons_s
        head += (driver + registry + gcs) * period
        busy = spent
        state.clock[1] = max(1.0, head / (services.head_cpus * period))
    marks.append(
        (now, float(state.counts[3]), state.busy.copy(), int(state.counts[1]),
         int(state.counts[4]), 0)
    )  # fmt: skip
    low = next(m for m in marks if m[1] >= 0.2 * whole)
    high = next((m for m in marks if m[1] >= 0.6 * whole and m[0] > low[0]), marks[-1])
    span = max(high[0] - low[0], 1e-9)
    spent_by = (high[2] - low[2]) / span
    units, sent = (high[3] - low[3]) / span, (high[4] - low[4]) / span
    per_request = (len(work.lengths) / (len(work.samples) - 1)) * services.sample_bytes
    loops = driver + units * (services.unit_s + labelers * services.call_s)
    use = {
        "labelers": float(spent_by[:labelers].max()),
        "checkers": float(spent_by[labelers:].max()),
        "driver": loops,
        "registry": registry,
        "GCS": gcs,
        "cores of the head": (
            float(spent_by.sum()) + loops + registry + gcs + sent * services.daemons_s
        )
        / services.head_cpus,
        "network of the head": sent * per_request * 8 / (services.head_gbits * 1e9),
        "storage": units * services.puts / services.puts_per_s,
    }
    return Outcome(engines, now, whole / now, (high[1] - low[1]) / span, use)


def efficiency(one: Outcome, many: Outcome) -> float:
    return many.tokens_per_s / (many.engines * one.tokens_per_s)


def bottleneck(one: Outcome, many: Outcome) -> str:
    """What costs most: a central part, the busiest, or the end of the run."""
    central = 1 - many.middle_tokens_per_s / (many.engines * one.middle_tokens_per_s)
    ends = 1 - many.tokens_per_s / many.middle_tokens_per_s
    return max(many.use, key=lambda part: many.use[part]) if central > ends else TAIL


assert MAX_LABELERS  # the default of `Services.labelers` follows it, see tests
