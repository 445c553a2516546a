"""A critic's verdicts against labels."""

from __future__ import annotations

import pytest

from stepwiser.evaluation.critic_agreement import contradicted, critic_agreement

LABELS = [True, True, True, False, False, True]
VERDICTS = [True, False, True, False, True, None]
PROBLEMS = ["a", "a", "b", "b", "c", "c"]


def test_missing_verdicts_count_for_nothing() -> None:
    found = critic_agreement("critic", LABELS, VERDICTS, PROBLEMS)
    assert (found.chunks, found.verdicts) == (6, 5)
    assert found.agreement == pytest.approx(3 / 5)
    assert found.passed_positive == pytest.approx(2 / 3)
    assert found.found_negative == pytest.approx(1 / 2)
    chance = 0.6 * 0.6 + 0.4 * 0.4
    assert found.kappa == pytest.approx((0.6 - chance) / (1 - chance))
    assert found.low is not None and found.high is not None
    assert found.low <= 0.6 <= found.high


def test_what_says_nothing_has_no_figures() -> None:
    found = critic_agreement("critic", LABELS, [None] * 6, PROBLEMS)
    assert (found.verdicts, found.agreement, found.kappa) == (0, None, None)
    assert (found.passed_positive, found.found_negative) == (None, None)
    always = critic_agreement("critic", LABELS, [True] * 6, PROBLEMS)
    assert always.kappa is None and always.agreement == pytest.approx(4 / 6)
    assert (always.passed_positive, always.found_negative) == (1.0, 0.0)


def test_only_a_verdict_contradicts() -> None:
    labels = {"a": True, "b": True, "c": False, "d": False}
    assert contradicted(labels, {"a": False, "b": None, "c": False, "d": True}) == {"a", "d"}
    assert contradicted(labels, {}) == frozenset()
