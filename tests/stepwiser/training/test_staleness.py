"""Which steps may be sampled when, and that none is ever too old, however the events fall."""

from __future__ import annotations

import random

import pytest

from stepwiser.training.staleness import Phase, StalenessGate, sample_age


def _admitted(gate: StalenessGate) -> list[int]:
    return list(iter(gate.admit, None))


def _finish(gate: StalenessGate, step: int) -> None:
    gate.advance(step, Phase.DRAINING)
    gate.advance(step, Phase.READY)


def test_nothing_begins_before_the_first_weights() -> None:
    assert _admitted(StalenessGate(2, steps=9)) == []


def test_on_policy_a_step_waits_for_its_own_weights() -> None:
    gate = StalenessGate(0, steps=3)
    for step in range(3):
        assert gate.publish(step) == ()
        assert _admitted(gate) == [step]
        _finish(gate, step)
        assert _admitted(gate) == []
    gate.publish(3)
    assert _admitted(gate) == [], "there is no fourth step"


def test_one_version_old_means_that_the_next_step_is_sampled_while_this_one_is_trained() -> None:
    gate = StalenessGate(1, steps=9)
    gate.publish(0)
    assert _admitted(gate) == [0]
    gate.advance(0, Phase.DRAINING)
    assert _admitted(gate) == [1], "it fills the places that step 0 leaves"
    _finish(gate, 0)
    _finish(gate, 1)
    assert _admitted(gate) == [], "step 2 may not be sampled with version 0"
    gate.publish(1)
    assert _admitted(gate) == [2]


def test_steps_ahead_come_one_after_the_other() -> None:
    gate = StalenessGate(3, steps=9)
    gate.publish(0)
    begun = []
    while (step := gate.admit()) is not None:
        assert gate.admit() is None, "the one before still fills the engines"
        begun.append(step)
        gate.advance(step, Phase.DRAINING)
    assert begun == [0, 1, 2, 3]


def test_a_learner_that_goes_back_gets_everything_anew() -> None:
    gate = StalenessGate(2, steps=9)
    gate.publish(4)
    for step in (4, 5, 6):
        assert _admitted(gate) == [step]
        _finish(gate, step)
    assert gate.publish(5) == ()
    assert _admitted(gate) == [7]
    assert gate.publish(4) == (5, 6, 7)
    gate.advance(7, Phase.READY)  # it was on its way out
    assert _admitted(gate) == [4]
    assert gate.publish(4) == (4,), "the same version again: a learner that began anew"


def test_a_batch_beyond_the_bound_is_refused() -> None:
    assert sample_age(5, oldest=4, bound=1) == 1
    assert sample_age(5, oldest=5, bound=1) == 0
    with pytest.raises(RuntimeError, match="step 5 holds a sample of weight version 3, 2 versions"):
        sample_age(5, oldest=3, bound=1)


@pytest.mark.parametrize("bound", [0, 1, 2, 4])
def test_whatever_the_order_of_events_no_sample_is_older_than_the_bound(bound: int) -> None:
    """Engines answer in any order, the learner trains when it can and at times falls back."""
    oldest_seen = 0
    for seed in range(200):
        rng = random.Random(seed)
        gate = StalenessGate(bound, steps=12)
        version, trained = 0, []
        gate.publish(0)
        filling: dict[int, list[int]] = {}  # versions of the groups sampled so far
        ready: dict[int, list[int]] = {}
        while version < 12:
            while (step := gate.admit()) is not None:
                assert step not in filling and step not in ready, "begun twice"
                filling[step] = []
            assert len(filling) + len(ready) <= bound + 1
            events = [*filling, *(["train"] if version in ready else [])]
            event = rng.choice(events)
            if event == "train":
                oldest_seen = max(oldest_seen, sample_age(version, min(ready.pop(version)), bound))
                trained.append(version)
                back = rng.random() < 0.05
                version = rng.randint(0, version) if back else version + 1
                evicted = gate.publish(version)
                if back:
                    assert set(evicted) >= {*filling, *ready}
                    filling, ready, trained = {}, {}, trained[:version]
                continue
            filling[event].append(version)  # a group is begun with the newest weights
            if len(filling[event]) == 2:
                gate.advance(event, Phase.DRAINING)
            if len(filling[event]) == 4:
                ready[event] = filling.pop(event)
                gate.advance(event, Phase.READY)
        assert trained == list(range(12)), "every step once, in order"
    assert oldest_seen == bound, "the bound is used, and kept"
