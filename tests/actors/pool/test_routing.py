"""Routing without actors: who gets what, and that nothing waits beside an idle engine."""

from __future__ import annotations

import random

import pytest

from actors.pool.routing import HEADROOM, Load, Router

ONE = Load(10, 1)


def make_router(engines: int, slots: int = 4) -> Router:
    router = Router(slots)
    router.set_members(range(engines))
    return router


def _homes(router: Router, names: int = 200) -> dict[str, int]:
    homes = {}
    for i in range(names):
        engine = router.submit(i, f"name {i}", ONE)
        assert engine is not None
        router.finish(engine, ONE)
        homes[f"name {i}"] = engine
    return homes


def test_one_name_stays_on_one_engine_and_many_names_spread():
    homes = _homes(make_router(4))
    assert _homes(make_router(4)) == homes
    counts = [list(homes.values()).count(i) for i in range(4)]
    assert min(counts) > 30


def test_only_names_of_an_engine_that_goes_move_and_come_back():
    router = make_router(4)
    before = _homes(router)
    router.set_members([0, 1, 3])
    without = _homes(router)
    assert all(without[n] == home for n, home in before.items() if home != 2)
    router.set_members([0, 1, 3, 2])
    assert _homes(router) == before
    router.set_down(2, True)
    assert _homes(router) == without
    router.set_members([0, 1, 2, 3, 4])
    router.set_down(2, False)
    grown = _homes(router)
    assert {n for n, home in grown.items() if home != before[n]} == {
        n for n, home in grown.items() if home == 4
    }


def test_a_busy_home_gives_way_to_an_idle_engine():
    router = make_router(3, slots=1000)
    home = router.submit(0, "a name", ONE)
    assert home is not None
    router.set_elsewhere({home: Load(30, 3)})
    assert router.submit(1, "a name", ONE) == home
    router.set_elsewhere({home: Load(1000, 100)})
    other = router.submit(2, "a name", ONE)
    assert other not in (home, None)
    # As busy everywhere, it is at home again.
    router.set_elsewhere({i: Load(900, 90) for i in range(3)} | {home: Load(1000, 100)})
    assert router.submit(3, "a name", ONE) == home


def test_a_full_home_is_waited_for_only_while_nobody_idles():
    router = make_router(2)
    home = router.submit(0, "a name", ONE)
    sent = [home] + [router.submit(i, "a name", ONE) for i in range(1, 20)]
    # Both are full, with one more on its way at home; the rest waits here.
    assert sent.count(home) == HEADROOM * 4 and sent.count(1 - home) == 4
    assert router.waiting == 20 - 9
    # The other engine, done first, takes work that has its home elsewhere, the last first.
    router.finish(1 - home, ONE)
    assert router.dispatch(1 - home) == [(19, 1 - home)]
    router.finish(home, ONE)
    assert router.dispatch(home) == [(sent.index(None), home)]


def test_other_clients_leave_one_request_an_engine_to_everyone():
    router = make_router(2)
    router.set_elsewhere({0: Load(100, 50), 1: Load(100, 50)})
    assert sorted(router.submit(i, None, ONE) for i in range(2)) == [0, 1]
    assert router.submit(2, None, ONE) is None
    router.set_elsewhere({0: Load(0, 0), 1: Load(100, 50)})
    assert router.dispatch() == [(2, 0)]


def test_what_waits_for_an_engine_that_goes_moves():
    router = make_router(1)
    assert [router.submit(i, "a", ONE) for i in range(8)] == [0] * 5 + [None] * 3
    router.set_down(0, True)
    assert router.dispatch() == [] and router.submit(8, "b", ONE) is None
    router.set_members([7])
    assert router.dispatch() == [(5, 7), (6, 7), (7, 7), (8, 7)]
    router.finish(0, ONE)  # of an engine that is no more


def test_a_dropped_request_is_never_sent():
    router = make_router(1, slots=1)
    assert [router.submit(i, "a", ONE) for i in range(4)] == [0, 0, None, None]
    router.drop(2)
    router.drop(2)
    for _ in range(2):
        router.finish(0, ONE)
    assert router.dispatch(0) == [(3, 0)] and router.waiting == 0


@pytest.mark.parametrize("seed", range(60))
def test_every_request_is_sent_once_and_no_engine_idles_beside_a_queue(seed):
    rng = random.Random(seed)
    slots = rng.choice([1, 4, 16])
    router = make_router(rng.randint(1, 5), slots)
    members, down = set(router._own), set()
    running: list[tuple[int, int, Load]] = []
    costs: dict[int, Load] = {}
    seen: list[int] = []
    number = 0

    def take(sent: list[tuple[int, int]]) -> None:
        for request, engine in sent:
            assert engine in members - down
            seen.append(request)
            running.append((request, engine, costs[request]))

    for _ in range(600):
        event = rng.random()
        if event < 0.5:
            costs[number] = Load(rng.randint(1, 50), rng.choice([1, 2, 16]))
            affinity = rng.choice([None, *(f"n{i}" for i in range(6))])
            engine = router.submit(number, affinity, costs[number])
            take([(number, engine)] if engine is not None else [])
            number += 1
        elif event < 0.95 and running:
            _, engine, cost = running.pop(rng.randrange(len(running)))
            router.finish(engine, cost)
            take(router.dispatch(engine))
        else:
            if rng.random() < 0.5 and members:
                engine = rng.choice(sorted(members))
                down ^= {engine}
                router.set_down(engine, engine in down)
            else:
                members = set(rng.sample(range(8), rng.randint(0, 5)))
                down &= members
                running = [r for r in running if r[1] in members]
                router.set_members(members)
            take(router.dispatch())
        if router.waiting:
            free = [i for i in members - down if router.load(i).sequences < slots]
            assert not free, "an engine idles while requests wait"
    members, down, running = {9}, set(), []
    router.set_members(members)
    while len(seen) < number:
        take(router.dispatch())
        for _, engine, cost in running:
            router.finish(engine, cost)
        running.clear()
    assert sorted(seen) == list(range(number)) and router.waiting == 0


def test_a_name_with_nothing_else_under_way_goes_before_the_others_in_its_own_order():
    router = make_router(1, slots=1)
    assert router.submit(0, None, ONE) == 0 and router.submit(1, None, ONE) == 0
    for number, first in ((2, False), (3, True), (4, False), (5, True)):
        assert router.submit(number, "a name", ONE, first) is None
    order = []
    while router.waiting:
        router.finish(0, ONE)
        order += [number for number, _ in router.dispatch()]
    assert order == [3, 5, 2, 4]
