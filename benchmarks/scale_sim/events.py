"""What happens between two looks of the driver, event by event.

A run of the paper's size has sixty million samples, and the end of each is an event: compiled by
Numba that takes minutes. (SimPy, a library for this, makes Python objects of events and would take
a night.) `s` is a `State` and `c` its `Costs`, which stay as they are while arrays in `s` change.

Engines decode all of their sequences at the same pace, `EngineRate`; each keeps a clock that counts
the tokens of one sequence, and a heap of the sequences by what that clock says when they end. So a
change of the pace moves nothing in the heap. A labeler, and its checker, do one thing at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.pool.routing import HEADROOM

ARRIVES, ANSWERED, DONE, WRITTEN = 0, 1, 2, 3
"""A request comes to its engine; its answer comes to the labeler; is dealt with; a unit's rows are
in the storage."""


def _compiler() -> Callable[[Any], Any]:
    """Numba's, unless its own switch is off. Then it is not even imported: vLLM cannot start an
    engine in a process that has llvmlite, as that of tests may have to."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        return lambda function: function
    from numba import njit

    return njit(cache=True)


compiled = _compiler()

# --- heaps ----------------------------------------------------------------------------------------


@compiled
def _push(keys, values, size, key, value):  # type: ignore[no-untyped-def]
    """Into a heap of `size` entries."""
    i = size
    while i > 0 and keys[(i - 1) // 2] > key:
        keys[i], values[i] = keys[(i - 1) // 2], values[(i - 1) // 2]
        i = (i - 1) // 2
    keys[i], values[i] = key, value


@compiled
def _pop(keys, values, size):  # type: ignore[no-untyped-def]
    """The first entry's value, out of a heap of `size` entries."""
    found = values[0]
    key, value = keys[size - 1], values[size - 1]
    i = 0
    while 2 * i + 1 < size - 1:
        child = 2 * i + 1
        if child + 1 < size - 1 and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[i], values[i] = keys[child], values[child]
        i = child
    keys[i], values[i] = key, value
    return found


@compiled
def _moved(s, engine):  # type: ignore[no-untyped-def]
    """An engine's next end has changed: its place in the order follows."""
    key, i = s.next_end[engine], s.place[engine]
    while i > 0 and s.next_end[s.order[(i - 1) // 2]] > key:
        s.order[i] = s.order[(i - 1) // 2]
        s.place[s.order[i]] = i
        i = (i - 1) // 2
    size = len(s.order)
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and s.next_end[s.order[child + 1]] < s.next_end[s.order[child]]:
            child += 1
        if s.next_end[s.order[child]] >= key:
            break
        s.order[i] = s.order[child]
        s.place[s.order[i]] = i
        i = child
    s.order[i], s.place[engine] = engine, i


@compiled
def _happens(s, when, kind, number):  # type: ignore[no-untyped-def]
    _push(s.event_at, s.event, s.counts[0], when, kind + 4 * number)
    s.counts[0] += 1


@compiled
def _append(first, last, behind, chain, item):  # type: ignore[no-untyped-def]
    if first[chain] < 0:
        first[chain] = item
    else:
        behind[last[chain]] = item
    last[chain], behind[item] = item, -1


@compiled
def _take(first, behind, chain):  # type: ignore[no-untyped-def]
    item = first[chain]
    first[chain] = behind[item]
    return item


# --- engines --------------------------------------------------------------------------------------


@compiled
def _wind(s, c, engine):  # type: ignore[no-untyped-def]
    """Bring an engine's clock up to now."""
    if s.running[engine]:
        pace = 1.0 / (c.step + s.running[engine] * c.sequence)
        s.tokens[engine] += (s.clock[0] - s.last[engine]) * pace
    s.last[engine] = s.clock[0]


@compiled
def _fill(s, c, engine):  # type: ignore[no-untyped-def]
    """Give free slots to what waits, and tell when the next sequence ends."""
    slots = s.ends.shape[1]
    while s.running[engine] < slots and s.chain_first[engine] >= 0:
        request = s.chain_first[engine]
        first, end = s.samples[request], s.samples[request + 1]
        length = s.lengths[first + s.started[request]]
        _push(
            s.ends[engine], s.ending[engine], s.running[engine], s.tokens[engine] + length, request
        )
        s.running[engine] += 1
        s.waiting[engine] -= 1
        s.started[request] += 1
        if first + s.started[request] == end:
            _take(s.chain_first, s.request_next, engine)
    left = s.running[engine]
    if left:
        to_go = max(0.0, s.ends[engine, 0] - s.tokens[engine])
        s.next_end[engine] = s.clock[0] + to_go * (c.step + left * c.sequence)
    else:
        s.next_end[engine] = np.inf
    _moved(s, engine)


@compiled
def _sequence_ends(s, c, engine):  # type: ignore[no-untyped-def]
    _wind(s, c, engine)
    request = _pop(s.ends[engine], s.ending[engine], s.running[engine])
    s.running[engine] -= 1
    s.ended[request] += 1
    if s.ended[request] == s.samples[request + 1] - s.samples[request]:
        _happens(s, s.clock[0] + c.hop, ANSWERED, request)
    _fill(s, c, engine)


# --- labelers -------------------------------------------------------------------------------------


@compiled
def _work(s, labeler, seconds):  # type: ignore[no-untyped-def]
    """Have a labeler do something; returns when it is done."""
    seconds *= s.clock[1]
    s.free_at[labeler] = max(s.free_at[labeler], s.clock[0]) + seconds
    s.busy[labeler] += seconds
    return s.free_at[labeler]


@compiled
def _has_room(s, labeler, engine):  # type: ignore[no-untyped-def]
    own = s.own[labeler, engine]
    return own == 0 or own + s.others[labeler, engine] < HEADROOM * s.ends.shape[1]


@compiled
def _send(s, c, labeler, request, engine):  # type: ignore[no-untyped-def]
    size = s.samples[request + 1] - s.samples[request]
    s.own[labeler, engine] += size
    s.total[engine] += size
    s.request_engine[request] = engine
    s.counts[4] += 1
    _happens(s, _work(s, labeler, c.submit) + c.hop, ARRIVES, request)


@compiled
def _ask(s, c, labeler, request, urgent):  # type: ignore[no-untyped-def]
    """Send a request to the engine with least to do, or keep it until one has room."""
    engines = len(s.running)
    chain = engines + 2 * labeler
    if s.chain_first[chain] < 0 and s.chain_first[chain + 1] < 0:
        best, least = -1, 0
        for engine in range(engines):
            load = s.own[labeler, engine] + s.others[labeler, engine]
            if (best < 0 or load < least) and _has_room(s, labeler, engine):
                best, least = engine, load
        if best >= 0:
            _send(s, c, labeler, request, best)
            return
    s.held_back[labeler] += s.samples[request + 1] - s.samples[request]
    _append(s.chain_first, s.chain_last, s.request_next, chain + (0 if urgent else 1), request)


@compiled
def _send_waiting(s, c, labeler, engine):  # type: ignore[no-untyped-def]
    chain = len(s.running) + 2 * labeler
    while _has_room(s, labeler, engine):
        if s.chain_first[chain] < 0:
            chain += 1
            if chain > len(s.running) + 2 * labeler + 1:
                return
            continue
        request = _take(s.chain_first, s.request_next, chain)
        s.held_back[labeler] -= s.samples[request + 1] - s.samples[request]
        _send(s, c, labeler, request, engine)


@compiled
def _answered(s, c, request):  # type: ignore[no-untyped-def]
    labeler = s.problem_labeler[s.request_problem[request]]
    engine = s.request_engine[request]
    size = s.samples[request + 1] - s.samples[request]
    s.own[labeler, engine] -= size
    s.total[engine] -= size
    _send_waiting(s, c, labeler, engine)
    done = _work(s, labeler, c.answer + size * c.sample)
    checks = size * c.new_answers * c.check * s.clock[1]
    s.check_at[labeler] = max(s.check_at[labeler], done) + checks
    s.busy[len(s.inside) + labeler] += checks
    _happens(s, s.check_at[labeler], DONE, request)


@compiled
def _open(s, c, labeler):  # type: ignore[no-untyped-def]
    """Begin problems that wait in a labeler, as many as it may have under way."""
    while s.problem_first[labeler] >= 0 and s.inside[labeler] < s.allowed[labeler]:
        problem = _take(s.problem_first, s.problem_next, labeler)
        s.outside[labeler] -= 1
        s.inside[labeler] += 1
        _ask(s, c, labeler, s.requests[problem], True)


@compiled
def _done(s, c, request):  # type: ignore[no-untyped-def]
    problem = s.request_problem[request]
    labeler = s.problem_labeler[problem]
    first, end = s.requests[problem], s.requests[problem + 1]
    for i in range(s.samples[request], s.samples[request + 1]):
        s.counts[3] += s.lengths[i]
    if request == first:
        s.problem_left[problem] = end - first - 1
        for other in range(first + 1, end):
            _ask(s, c, labeler, other, False)
    else:
        s.problem_left[problem] -= 1
    if s.problem_left[problem]:
        return
    s.counts[2] += 1
    s.inside[labeler] -= 1
    _open(s, c, labeler)
    unit = problem // c.unit
    s.unit_left[unit] -= 1
    if s.unit_left[unit] == 0:
        _happens(s, _work(s, labeler, c.write) + c.storage, WRITTEN, unit)


@compiled
def hand_out(s, c, unit):  # type: ignore[no-untyped-def]
    """Give units from number `unit` on to labelers that have least, until none has room; returns
    the number of the next one."""
    labelers, units = len(s.inside), len(s.unit_left)
    while unit < units:
        best = 0
        for i in range(1, labelers):
            more = s.inside[i] + s.outside[i] - s.allowed[i]
            if more < s.inside[best] + s.outside[best] - s.allowed[best]:
                best = i
        if s.inside[best] + s.outside[best] > s.allowed[best]:
            break
        for problem in range(unit * c.unit, min((unit + 1) * c.unit, len(s.problem_left))):
            s.problem_labeler[problem] = best
            _append(s.problem_first, s.problem_last, s.problem_next, best, problem)
            s.outside[best] += 1
        unit += 1
    for labeler in range(labelers):
        _open(s, c, labeler)
        for engine in range(len(s.running)):
            s.others[labeler, engine] = s.total[engine] - s.own[labeler, engine]
        if s.held_back[labeler]:
            for engine in range(len(s.running)):
                _send_waiting(s, c, labeler, engine)
    return unit


@compiled
def advance(s, c, until):  # type: ignore[no-untyped-def]
    """Go on until a time, or until all is written."""
    while s.counts[1] < len(s.unit_left):
        engine = s.order[0]
        ends = s.next_end[engine]
        comes = s.event_at[0] if s.counts[0] else np.inf
        if min(ends, comes) > until:
            break
        if ends < comes:
            s.clock[0] = ends
            _sequence_ends(s, c, engine)
            continue
        s.clock[0] = comes
        event = _pop(s.event_at, s.event, s.counts[0])
        s.counts[0] -= 1
        kind, number = event % 4, event // 4
        if kind == ARRIVES:
            engine = s.request_engine[number]
            _wind(s, c, engine)
            _append(s.chain_first, s.chain_last, s.request_next, engine, number)
            s.waiting[engine] += s.samples[number + 1] - s.samples[number]
            _fill(s, c, engine)
        elif kind == ANSWERED:
            _answered(s, c, number)
        elif kind == DONE:
            _done(s, c, number)
        else:
            s.counts[1] += 1
    else:
        return True
    s.clock[0] = until
    return False
