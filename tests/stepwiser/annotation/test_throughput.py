"""Figures of annotation while it goes on, against numbers worked out by hand."""

import pytest

from stepwiser.annotation.outlook import WorkSeen
from stepwiser.annotation.stopping import StoppingPlan, StoppingRule
from stepwiser.annotation.throughput import (
    RECENT_S,
    WINDOW_S,
    EarlierWork,
    EngineCounters,
    EngineFigures,
    ThroughputMonitor,
    cache_hits,
    engine_figures,
    label_shares,
    saved_rollouts,
    saved_share,
)

FIXED = StoppingPlan(StoppingRule.FIXED, planned=16, wave=16)
EXACT = StoppingPlan(StoppingRule.EXACT, planned=16, wave=4)
UNIT = {
    "problems": 3, "rejected": 1, "chunks": 30, "prefixes": 20, "rollouts": 200,
    "response_tokens": 500, "rollout_tokens": 4000, "labelled: abs_q": 25, "positive: abs_q": 20,
}  # fmt: skip


def test_an_engine_is_measured_by_its_own_clock() -> None:
    earlier = {
        0: EngineCounters(100.0, 1000, 400, 100),
        1: EngineCounters(50.0, 900, 300, 300),
        2: EngineCounters(9.0, 90, 30, 0),
    }
    later = {
        0: EngineCounters(110.0, 3000, 600, 250),
        1: EngineCounters(50.0, 900, 300, 300),  # it has gone
        2: EngineCounters(14.0, 190, 30, 0),  # asked for nothing that had a prompt answered
        3: EngineCounters(4.0, 100, 50, 25),  # it came since
    }
    assert engine_figures(earlier, later) == {
        0: EngineFigures(200.0, 0.75),
        2: EngineFigures(20.0, None),
        3: EngineFigures(25.0, 0.5),
    }
    assert cache_hits(earlier, later) == pytest.approx(175 / 250)
    assert engine_figures(later, later) == {} and cache_hits(later, later) is None


def test_what_stopping_early_saves() -> None:
    assert saved_rollouts(EXACT, UNIT) == 20 * 16 - 200
    assert saved_share(EXACT, UNIT) == pytest.approx(120 / 320)
    assert saved_rollouts(FIXED, UNIT) is None and saved_share(FIXED, UNIT) is None
    assert saved_share(EXACT, {}) is None, "no prefix yet"


def test_label_shares_are_by_rule() -> None:
    counts = UNIT | {"labelled: rel_ratio": 4, "labelled: rel_effective": 0}
    assert label_shares(counts) == {"abs_q": 0.8, "rel_ratio": 0.0}


def test_before_anything_is_finished() -> None:
    figures = ThroughputMonitor(1000.0, 4, 16, EXACT, EarlierWork()).look(
        1001.0, {}, 8.0, WorkSeen()
    )
    assert (figures.problems, figures.planned_problems) == (0, 16)
    assert (figures.units, figures.planned_units) == (0, 4)
    assert figures.rollouts_per_s is figures.tokens_per_s is figures.eta_s is None
    assert figures.saved_rollouts == 0 and figures.saved_share is None
    assert figures.gpu_hours == pytest.approx(8 / 3600)
    assert "eta_s" not in figures.row(), "what is not known is no number"


def test_work_is_measured_over_minutes_and_earlier_starts_count() -> None:
    before = EarlierWork(units=1, counts=UNIT, gpu_hours=0.5)
    watch = ThroughputMonitor(1000.0, 4, 16, EXACT, before)
    watch.finished(1040.0, UNIT)
    watch.finished(1090.0, UNIT)
    figures = watch.look(1100.0, {}, 3600.0, WorkSeen())
    assert (figures.problems, figures.planned_problems) == (12, 20)
    assert (figures.units, figures.planned_units) == (3, 5)
    assert (figures.chunks, figures.rollouts, figures.tokens) == (90, 600, 13_500)
    assert figures.rollouts_per_s == pytest.approx(400 / 100), "of this start"
    assert figures.eta_s is None, "no problem has been seen"
    assert (figures.saved_rollouts, figures.saved_share) == (360, pytest.approx(0.375))
    assert figures.saved_tokens == 360 * 20, "a rollout had 20 tokens"
    assert figures.labels == {"abs_q": 0.8} and figures.gpu_hours == 1.5

    late = watch.look(1041.0 + RECENT_S, {}, 3600.0, WorkSeen())
    assert late.rollouts_per_s == pytest.approx(200 / RECENT_S), "the first unit is long ago"
    stalled = watch.look(1091.0 + RECENT_S, {}, 3600.0, WorkSeen())
    assert stalled.rollouts_per_s is None


def test_the_time_to_go_is_what_is_left_at_the_present_rate() -> None:
    watch = ThroughputMonitor(0.0, 100, 400, FIXED, EarlierWork(units=7, counts=UNIT))
    # Ten problems with four responses of 50 tokens, and nothing to value in any of them.
    seen = WorkSeen(problems=10, responses=40, response_tokens=2000)
    for second in range(2001):
        # A second engine after 1,000 s.
        sampled = 45 * second + 45 * max(0, second - 1000)
        engines = {0: EngineCounters(50.0 + second, 9000 + sampled, 0, 0)}
        figures = watch.look(second, engines, 0.0, seen if second else WorkSeen())
        assert (figures.eta_s is None) == (second == 0)
    assert figures.eta_s == pytest.approx(390 * 200 / 90, rel=0.02)


def test_engines_are_measured_over_a_short_window() -> None:
    watch = ThroughputMonitor(0.0, 1, 4, FIXED, EarlierWork())

    def counters(seconds: float, tokens: int) -> dict[int, EngineCounters]:
        return {0: EngineCounters(100 + seconds, 5000 + tokens, 10 * tokens, 4 * tokens)}

    assert watch.look(0.0, counters(0, 0), 0.0, WorkSeen()).tokens_per_s is None, (
        "one look is no rate"
    )
    for second in range(1, 100):
        # 10 tokens/s at first, 30 later on.
        tokens = 10 * second if second <= 50 else 500 + 30 * (second - 50)
        figures = watch.look(second, counters(second, tokens), 0.0, WorkSeen())
        if second <= 50:
            assert figures.tokens_per_s == pytest.approx(10)
    assert figures.tokens_per_s == pytest.approx(30), f"the last {WINDOW_S:g} s count"
    assert figures.cache_hits == pytest.approx(0.4)
    row = figures.row()
    assert row["engine_0/tokens_per_s"] == pytest.approx(30) and row["engines"] == 1
    assert all(isinstance(value, int | float) for value in row.values())
    assert len(watch._looks) <= WINDOW_S + 2
