"""What a pool decides about its engines, from what the cluster looks like."""

from __future__ import annotations

from actors.pool.scaling import ClusterNodes, EngineState, Phase, ScalingPlan, plan_scaling

QUIET = ClusterNodes(frozenset("abc"), {})


def test_nothing_changes_while_all_is_well():
    engines = [EngineState(0, Phase.SERVING, "a"), EngineState(1, Phase.RETURNING, "b")]
    assert plan_scaling(engines, QUIET, 2, 0.0) == ScalingPlan({}, [], 0)


def test_engines_that_wait_for_a_place_are_not_asked_for_again():
    engines = [EngineState(0, Phase.SERVING, "a"), EngineState(1, Phase.STARTING, None)]
    assert plan_scaling(engines, QUIET, 3, 0.0) == ScalingPlan({}, [], 1)


def test_an_engine_whose_node_is_gone_is_replaced():
    engines = [EngineState(0, Phase.SERVING, "gone"), EngineState(1, Phase.SERVING, "a")]
    assert plan_scaling(engines, QUIET, 2, 0.0) == ScalingPlan({}, [0], 1)
    displaced = [EngineState(0, Phase.RETURNING, None, displaced=True)]
    assert plan_scaling(displaced, QUIET, 1, 0.0) == ScalingPlan({}, [0], 1)


def test_a_node_that_drains_lets_its_engine_finish_while_another_is_asked_for():
    nodes = ClusterNodes(frozenset("ab"), {"a": 100.0})
    serving = [EngineState(0, Phase.SERVING, "a"), EngineState(1, Phase.SERVING, "b")]
    assert plan_scaling(serving, nodes, 2, 50.0) == ScalingPlan({0: 100.0}, [], 1)
    draining = EngineState(0, Phase.DRAINING, "a", deadline=100.0)
    waiting = EngineState(2, Phase.STARTING, None)
    assert plan_scaling([draining, serving[1], waiting], nodes, 2, 50.0) == ScalingPlan({}, [], 0)
    idle = EngineState(0, Phase.DRAINING, "a", idle=True, deadline=100.0)
    assert plan_scaling([idle, serving[1], waiting], nodes, 2, 50.0) == ScalingPlan({}, [0], 0)


def test_the_deadline_ends_what_did_not_finish_and_none_waits_for_ever():
    nodes = ClusterNodes(frozenset("a"), {"a": 100.0})
    late = [EngineState(0, Phase.DRAINING, "a", deadline=100.0)]
    assert plan_scaling(late, nodes, 0, 99.0).remove == []
    assert plan_scaling(late, nodes, 0, 100.0).remove == [0]
    open_end = [EngineState(0, Phase.DRAINING, "a", deadline=0.0)]
    assert plan_scaling(open_end, nodes, 0, 1e12).remove == []


def test_an_engine_that_is_not_up_yet_is_not_waited_for_on_a_draining_node():
    nodes = ClusterNodes(frozenset("ab"), {"a": 100.0})
    for phase in (Phase.STARTING, Phase.RETURNING):
        assert plan_scaling([EngineState(0, phase, "a")], nodes, 1, 0.0) == ScalingPlan({}, [0], 1)


def test_fewer_wanted_ends_nobody_that_works():
    engines = [EngineState(0, Phase.SERVING, "a"), EngineState(1, Phase.SERVING, "b")]
    assert plan_scaling(engines, QUIET, 0, 0.0) == ScalingPlan({}, [], 0)
