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

from benchmarks.scale_sim.events import advance, hand_out
from benchmarks.scale_sim.services import EngineRate, Services, at
from benchmarks.scale_sim.state import State, costs, start
from benchmarks.scale_sim.work import Work
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


@dataclass(frozen=True)
class _Mark:
    """Counts at one look."""

    seconds: float
    tokens: int
    busy: np.ndarray
    """Seconds that each labeler, then each checker, has worked, without what waits for it."""
    units: int
    sent: int


def simulate(work: Work, rate: EngineRate, services: Services, engines: int) -> Outcome:
    labelers = min(services.labelers, engines)
    state, cost = start(work, rate, engines, labelers), costs(rate, services, engines, work.unit)
    admission = Admission(responses(work))
    load = steady_load(services, engines)
    news = at(services.news_s, engines)
    seen: deque[dict[int, Reading]] = deque()
    marks: list[_Mark] = [_mark(state, np.zeros_like(state.busy))]
    backlog, unit, ended = 0.0, 0, False
    while not ended:
        waiting = round(int(state.held_back.sum()) / engines)
        seen.append(
            {
                index: Reading(running, own + waiting, rate.slots)
                for index, (running, own) in enumerate(
                    zip(state.running.tolist(), state.waiting.tolist(), strict=True)
                )
            }
        )
        # A registry that is behind tells what was so some seconds ago.
        backlog = max(0.0, backlog + load["registry"] - 1.0)
        while len(seen) > int(backlog) + 1:
            seen.popleft()
        allowed = admission.observe(seen[0], int(state.inside.sum())) or COLD_START
        state.allowed[:] = [max(1, (allowed + i) // labelers) for i in range(labelers)]
        unit = hand_out(state, cost, unit)
        state.busy[:labelers] += news * state.clock[1]
        state.free_at[:] = np.maximum(state.free_at, state.clock[0]) + news * state.clock[1]
        period = max(PERIOD_S, load["driver"] * state.clock[1])
        ended = bool(advance(state, cost, state.clock[0] + period))
        marks.append(_mark(state, marks[-1].busy))
        used = use(marks[-2], marks[-1], services, load)
        state.clock[1] = max(1.0, used["cores of the head"])
    tokens, end = work.tokens, marks[-1]
    low = next(mark for mark in marks if mark.tokens >= 0.2 * tokens)
    high = next((m for m in marks if m.tokens >= 0.6 * tokens and m.seconds > low.seconds), end)
    if high.seconds == low.seconds:  # too short to have a middle
        low = marks[0]
    middle = (high.tokens - low.tokens) / (high.seconds - low.seconds)
    # The network carries samples, of which a request has as many as there are a request.
    load["samples"] = len(work.lengths) / (len(work.samples) - 1)
    shares = use(low, high, services, load)
    return Outcome(engines, end.seconds, tokens / end.seconds, middle, shares)


def _mark(state: State, earlier: np.ndarray) -> _Mark:
    """``earlier``: the work that was done by the look before. A checker may be waiting for its
    labeler, which would count as work that it has yet to do."""
    _, units, _, tokens, sent = (int(count) for count in state.counts[:5])
    to_do = np.concatenate([state.free_at, state.check_at]) - state.clock[0]
    done = np.maximum(earlier, state.busy - np.maximum(0.0, to_do))
    return _Mark(float(state.clock[0]), tokens, done, units, sent)


def steady_load(services: Services, engines: int) -> dict[str, float]:
    """Seconds a second of the parts that have as much to do whatever is annotated."""
    labelers = min(services.labelers, engines)
    nodes = -(-engines // services.node_engines)
    # A call from every engine, every labeler, and three of the driver.
    calls = (engines + labelers + 3) * services.called_s
    return {
        "driver": at(services.tick_s, engines) + labelers * services.call_s,
        "registry": at(services.registry_s, engines) + calls,
        "GCS": services.gcs_node_s * nodes,
    }


def use(
    earlier: _Mark, later: _Mark, services: Services, load: Mapping[str, float]
) -> dict[str, float]:
    """Share that each part was busy between two looks; of the storage and the network, of what they
    can do."""
    span = max(later.seconds - earlier.seconds, 1e-9)
    busy = (later.busy - earlier.busy) / span
    labelers = len(busy) // 2
    units, sent = (later.units - earlier.units) / span, (later.sent - earlier.sent) / span
    # Whenever a unit ends, the driver asks all labelers what they have.
    driver = load["driver"] + units * (services.unit_s + labelers * services.call_s)
    cores = busy.sum() + driver + load["registry"] + load["GCS"] + sent * services.daemons_s
    bits = 8 * sent * load.get("samples", 0.0) * services.sample_bytes
    return {
        "labelers": float(busy[:labelers].max()),
        "checkers": float(busy[labelers:].max()),
        "driver": float(driver),
        "registry": load["registry"],
        "GCS": load["GCS"],
        "cores of the head": float(cores / services.head_cpus),
        "network of the head": float(bits / (services.head_gbits * 1e9)),
        "storage": float(units * services.puts / services.puts_per_s),
    }


def efficiency(one: Outcome, many: Outcome) -> float:
    """``one``: what one engine makes that is never at its end."""
    return many.tokens_per_s / (many.engines * one.middle_tokens_per_s)


def bottleneck(one: Outcome, many: Outcome) -> str:
    """What costs most: a central part, the busiest, or the end of the run."""
    central = 1 - many.middle_tokens_per_s / (many.engines * one.middle_tokens_per_s)
    ends = 1 - many.tokens_per_s / many.middle_tokens_per_s
    return max(many.use, key=lambda part: many.use[part]) if central > ends else TAIL
