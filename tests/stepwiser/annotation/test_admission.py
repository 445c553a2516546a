"""The number of problems in flight, against a simulated engine that is not the tested code."""

from __future__ import annotations

import random

import pytest

from stepwiser.annotation.admission import (
    COLD_START,
    FEWEST,
    SETTLE,
    WAITING_HIGH,
    Admission,
    Limit,
    Reading,
    has_room,
    is_full,
    look,
)

IDLE = Reading(0, 0, 64, 0.0)
FULL = Reading(64, 300, 64, 0.5)


class Simulated:
    """An engine of ``slots`` sequences whose cache holds ``cache`` of them; each problem wants
    ``width`` sequences at a time."""

    def __init__(self, slots: int, cache: int, width: int) -> None:
        self.slots, self.cache, self.width = slots, cache, width

    def reading(self, problems: float) -> Reading:
        wanted = round(problems * self.width)
        running = min(wanted, self.slots, self.cache)
        return Reading(running, wanted - running, self.slots, running / self.cache)


def _settle(engines: list[Simulated], looks: int = 200, work: int = 10**9) -> list[int]:
    admission, history = Admission(16), []
    allowed = COLD_START * len(engines)
    for _ in range(looks):
        in_flight = min(allowed, work)
        each = in_flight / len(engines)
        readings = {i: engine.reading(each) for i, engine in enumerate(engines)}
        allowed = admission.observe(readings, in_flight)
        history.append(allowed)
    return history


@pytest.mark.parametrize("seed", range(200))
def test_it_settles_where_engines_are_busy_and_not_swamped(seed):
    rng = random.Random(seed)
    slots, width = rng.choice([8, 64, 256]), rng.choice([1, 3, 16, 200])
    engine = Simulated(slots, rng.choice([slots // 2, slots * 2, slots * 20]), width)
    count = rng.randint(1, 4)
    tail = _settle([engine] * count)[-60:]
    for allowed in tail:
        problems = allowed / count
        assert FEWEST <= problems <= slots * (1 + WAITING_HIGH)
        reading = engine.reading(problems)
        # Never dry: all slots in use, or all of the cache, or as much as the top allows.
        assert reading.sequences_running >= min(0.8 * engine.cache, slots)
        swamped = reading.sequences_waiting > WAITING_HIGH * slots
        assert not swamped or problems <= max(2 * FEWEST, 1.4 * WAITING_HIGH * slots / width)
    # It rests: the last looks move by few steps, not over and over across the band.
    assert max(tail) <= 1.5 * min(tail) + 2 * count


@pytest.mark.parametrize("seed", range(100))
def test_bounds_hold_whatever_is_reported(seed):
    rng = random.Random(seed)
    admission = Admission(16)
    for _ in range(300):
        engines = rng.sample(range(6), rng.randint(0, 6))
        slots = rng.choice([1, 16, 256])
        readings = {
            i: Reading(
                rng.randint(0, slots),
                rng.choice([0, 1, rng.randint(0, 10**5)]),
                slots,
                rng.choice([None, 0.0, rng.random(), 1.0]),
            )
            for i in engines
        }
        before = {i: limit.problems for i, limit in admission.limits.items()}
        allowed = admission.observe(readings, rng.randint(0, 10**4))
        assert set(admission.limits) == set(engines)
        assert allowed >= FEWEST * len(engines) if engines else allowed == 0
        for i, limit in admission.limits.items():
            if i in before:
                assert limit.problems <= max(2 * before[i], 4)
                assert limit.problems >= min(FEWEST, before[i])


def test_it_doubles_until_first_full_and_then_adds_one():
    limit = Limit()
    for expected in (8, 16, 32):
        limit = look(limit, IDLE, limit.problems)
        assert (limit.problems, limit.cold) == (expected, True)
    limit = look(limit, Reading(64, 20, 64, 0.5), limit.problems)
    assert (limit.problems, limit.cold) == (32, False)
    limit = look(limit, IDLE, limit.problems)
    assert limit.problems == 33


def test_a_cut_is_followed_by_a_rest():
    limit = look(Limit(problems=40, cold=False), FULL, 40)
    assert limit.problems == 30
    for _ in range(SETTLE):
        limit = look(limit, FULL, 40)
        assert limit.problems == 30
    assert look(limit, FULL, 30).problems == 22


def test_a_cut_starts_from_what_is_in_flight():
    assert look(Limit(problems=40, cold=False), FULL, 12).problems == 9


def test_a_limit_that_is_not_used_does_not_grow():
    assert look(Limit(problems=40), IDLE, 8).problems == 40


def test_a_full_cache_counts_only_where_something_waits_for_it():
    assert not is_full(Reading(50, 0, 64, 0.99))
    assert is_full(Reading(50, 1, 64, 0.99))
    assert not has_room(Reading(10, 0, 64, 0.9)) and has_room(Reading(10, 0, 64, None))


def test_between_the_marks_nothing_moves():
    limit = Limit(problems=9, cold=False)
    assert look(limit, Reading(64, 100, 64, 0.5), 9) == limit
    assert look(limit, Reading(64, 0, 64, 0.88), 9) == limit


def test_an_engine_that_leaves_takes_its_share_and_one_that_comes_starts_warm():
    admission = Admission(16)
    admission.limits = {0: Limit(20, cold=False), 1: Limit(30, cold=False)}
    quiet = Reading(64, 30, 64, 0.5)
    assert admission.observe({1: quiet}, 50) == 30
    assert admission.observe({1: quiet, 2: IDLE}, 30) == 60
    assert admission.observe({}, 60) == 0
    assert admission.observe({3: IDLE}, 0) == COLD_START


def test_the_first_engines_start_with_what_fills_their_slots():
    roomy = Reading(0, 0, 512, 0.0)
    assert Admission(16).observe({0: roomy, 1: roomy}, 0) == 64
    assert Admission(600).observe({0: roomy}, 0) == COLD_START
