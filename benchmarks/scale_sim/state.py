"""What the simulation keeps, as arrays: who belongs to whom is said by positions in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.scale_sim.services import EngineRate, Services, at
from benchmarks.scale_sim.work import Work


class Costs(NamedTuple):
    """Seconds, see `Services` and `EngineRate`."""

    submit: float
    answer: float
    sample: float
    check: float
    new_answers: float
    write: float
    storage: float
    hop: float
    step: float
    sequence: float
    unit: int


class State(NamedTuple):
    """Of everything, at one moment. Lists of requests and of problems are chains: `*_next` of one
    is the one behind it, -1 the end."""

    clock: Any
    """[0]: seconds; [1]: factor by which work on the head takes longer."""
    counts: Any
    """[0]: events in the heap; [1]: units written; [2]: problems done; [3]: tokens; [4]: requests
    sent."""
    event_at: Any
    event: Any
    """Kind + 4 x number."""
    last: Any
    """By engine: when its clock was read last, and what it said."""
    tokens: Any
    running: Any
    waiting: Any
    """Sequences."""
    ends: Any
    """By engine and place: the clock at a sequence's end."""
    ending: Any
    """Its request."""
    next_end: Any
    """By engine: when its next sequence ends."""
    order: Any
    """Engines as a heap by that."""
    place: Any
    chain_first: Any
    chain_last: Any
    """Of requests: those that wait in each engine, then two for each labeler, the urgent first."""
    request_next: Any
    request_problem: Any
    request_engine: Any
    started: Any
    """By request: sequences that were given a slot, and those that have ended."""
    ended: Any
    free_at: Any
    """By labeler: when it, and when its checker, has nothing to do."""
    check_at: Any
    busy: Any
    """By labeler: seconds of work; then of its checker."""
    held_back: Any
    """By labeler: sequences that no engine has yet."""
    own: Any
    """By labeler and engine: sequences sent there, and those that others had at the last news."""
    others: Any
    total: Any
    inside: Any
    """By labeler: problems under way, allowed, and waiting."""
    allowed: Any
    outside: Any
    problem_first: Any
    problem_last: Any
    problem_next: Any
    problem_left: Any
    problem_labeler: Any
    unit_left: Any
    requests: Any
    samples: Any
    lengths: Any


def costs(rate: EngineRate, services: Services, engines: int, unit: int) -> Costs:
    route = at(services.route_s, engines)
    return Costs(
        services.submit_s + route / 2,
        services.answer_s + route / 2,
        services.sample_s,
        services.check_s,
        services.new_answers,
        services.write_s,
        services.puts * services.put_s,
        services.hop_s,
        rate.step_s,
        rate.sequence_s,
        unit,
    )


def start(work: Work, rate: EngineRate, engines: int, labelers: int) -> State:
    """Everything idle, nothing begun."""
    requests, problems = len(work.samples) - 1, work.problems
    units = -(-problems // work.unit)
    sizes = np.full(units, work.unit, np.int64)
    sizes[-1] = problems - work.unit * (units - 1)
    counts = np.diff(work.requests)

    def ints(*shape: int, value: int = 0) -> Any:
        return np.full(shape, value, np.int64)

    def floats(*shape: int, value: float = 0.0) -> Any:
        return np.full(shape, value, np.float64)

    chains = engines + 2 * labelers
    return State(
        clock=np.array([0.0, 1.0]),
        counts=ints(8),
        # A request has one event at most, a unit another.
        event_at=floats(requests + units + 1),
        event=ints(requests + units + 1),
        last=floats(engines),
        tokens=floats(engines),
        running=ints(engines),
        waiting=ints(engines),
        ends=floats(engines, rate.slots),
        ending=ints(engines, rate.slots),
        next_end=floats(engines, value=np.inf),
        order=np.arange(engines),
        place=np.arange(engines),
        chain_first=ints(chains, value=-1),
        chain_last=ints(chains, value=-1),
        request_next=ints(requests, value=-1),
        request_problem=np.repeat(np.arange(problems), counts),
        request_engine=ints(requests, value=-1),
        started=np.zeros(requests, np.int32),
        ended=np.zeros(requests, np.int32),
        free_at=floats(labelers),
        check_at=floats(labelers),
        busy=floats(2 * labelers),
        held_back=ints(labelers),
        own=ints(labelers, engines),
        others=ints(labelers, engines),
        total=ints(engines),
        inside=ints(labelers),
        allowed=ints(labelers),
        outside=ints(labelers),
        problem_first=ints(labelers, value=-1),
        problem_last=ints(labelers, value=-1),
        problem_next=ints(problems, value=-1),
        problem_left=ints(problems),
        problem_labeler=ints(problems, value=-1),
        unit_left=sizes,
        requests=work.requests,
        samples=work.samples,
        lengths=work.lengths,
    )
