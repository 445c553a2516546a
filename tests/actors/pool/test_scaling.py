"""What a pool decides about its engines, from what the cluster looks like."""

from __future__ import annotations

from actors.pool.scaling import Changes, Nodes, Phase, Standing, decide

QUIET = Nodes(frozenset("abc"), {})


def test_nothing_changes_while_all_is_well():
    engines = [Standing(0, Phase.SERVING, "a"), Standing(1, Phase.RETURNING, "b")]
    assert decide(engines, QUIET, 2, 0.0) == Changes({}, [], 0)


def test_engines_that_wait_for_a_place_are_not_asked_for_again():
    engines = [Standing(0, Phase.SERVING, "a"), Standing(1, Phase.STARTING, None)]
    assert decide(engines, QUIET, 3, 0.0) == Changes({}, [], 1)


def test_an_engine_whose_node_is_gone_is_replaced():
    engines = [Standing(0, Phase.SERVING, "gone"), Standing(1, Phase.SERVING, "a")]
    assert decide(engines, QUIET, 2, 0.0) == Changes({}, [0], 1)
    displaced = [Standing(0, Phase.RETURNING, None, displaced=True)]
    assert decide(displaced, QUIET, 1, 0.0) == Changes({}, [0], 1)


def test_a_node_that_drains_lets_its_engine_finish_while_another_is_asked_for():
    nodes = Nodes(frozenset("ab"), {"a": 100.0})
    serving = [Standing(0, Phase.SERVING, "a"), Standing(1, Phase.SERVING, "b")]
    assert decide(serving, nodes, 2, 50.0) == Changes({0: 100.0}, [], 1)
    draining = Standing(0, Phase.DRAINING, "a", deadline=100.0)
    waiting = Standing(2, Phase.STARTING, None)
    assert decide([draining, serving[1], waiting], nodes, 2, 50.0) == Changes({}, [], 0)
    idle = Standing(0, Phase.DRAINING, "a", idle=True, deadline=100.0)
    assert decide([idle, serving[1], waiting], nodes, 2, 50.0) == Changes({}, [0], 0)


def test_the_deadline_ends_what_did_not_finish_and_none_waits_for_ever():
    nodes = Nodes(frozenset("a"), {"a": 100.0})
    late = [Standing(0, Phase.DRAINING, "a", deadline=100.0)]
    assert decide(late, nodes, 0, 99.0).remove == []
    assert decide(late, nodes, 0, 100.0).remove == [0]
    open_end = [Standing(0, Phase.DRAINING, "a", deadline=0.0)]
    assert decide(open_end, nodes, 0, 1e12).remove == []


def test_an_engine_that_is_not_up_yet_is_not_waited_for_on_a_draining_node():
    nodes = Nodes(frozenset("ab"), {"a": 100.0})
    for phase in (Phase.STARTING, Phase.RETURNING):
        assert decide([Standing(0, phase, "a")], nodes, 1, 0.0) == Changes({}, [0], 1)


def test_fewer_wanted_ends_nobody_that_works():
    engines = [Standing(0, Phase.SERVING, "a"), Standing(1, Phase.SERVING, "b")]
    assert decide(engines, QUIET, 0, 0.0) == Changes({}, [], 0)
