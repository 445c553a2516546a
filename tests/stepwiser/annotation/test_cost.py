"""Costs against hand-computed ones, and a run's own figures against what it spent."""

from dataclasses import fields

import pytest

from stepwiser.annotation.cost import (
    H100_RATE,
    PAPER_RATE,
    PAPER_WORK,
    PARAMETERS,
    Rate,
    estimate,
    parameters_of,
    parse_parameters,
    rate_of_run,
    with_values,
    work_of_run,
)

COUNTS = {
    "problems": 100, "responses": 800, "mixed_problems": 40, "trajectories": 120, "chunks": 500,
    "prefixes": 300, "shared_prefixes": 60, "rollouts": 3000, "response_tokens": 80_000,
    "rollout_tokens": 90_000,
}  # fmt: skip


def test_the_papers_fourteen_days() -> None:
    work = PAPER_WORK
    assert work.sampled_responses == 960_000
    assert work.prefixes == pytest.approx(40_000 * 16 * 5.8)
    assert work.sampled_rollouts == pytest.approx(40_000 * 16 * 5.8 * 16)
    assert work.tokens == pytest.approx(960_000 * 610 + 59_392_000 * 385)
    cost = estimate(work, PAPER_RATE, PARAMETERS["7B"], 8, "A100", 2.0)
    assert cost.days == pytest.approx(work.tokens / 20_000 / 86_400)
    assert 13 < cost.days < 15
    assert cost.gpu_hours == pytest.approx(cost.days * 24 * 8)
    assert cost.dollars == pytest.approx(2 * cost.gpu_hours)


def test_every_factor_counts_once() -> None:
    work = with_values(PAPER_WORK, {"response_tokens": 0.0})
    for name in ("kept_share", "trajectories", "rollouts", "rollout_share", "rollout_tokens"):
        half = with_values(work, {name: getattr(work, name).value / 2})
        assert half.tokens == pytest.approx(work.tokens / 2), name
    assert with_values(work, {"chunks": 1.0}).tokens == 0, "one chunk is its own outcome"
    assert all(getattr(PAPER_WORK, f.name).source for f in fields(PAPER_WORK))


@pytest.mark.parametrize("name, value", [("problems", -1.0), ("rollout_share", 1.5)])
def test_impossible_figures_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        with_values(PAPER_WORK, {name: value})


def test_a_rate_is_scaled_by_size_and_bandwidth() -> None:
    assert H100_RATE.on(PARAMETERS["0.5B"], "H100") == 52_800
    assert H100_RATE.on(2 * PARAMETERS["0.5B"], "H100") == pytest.approx(26_400)
    assert PAPER_RATE.on(PARAMETERS["7B"], "H100") == pytest.approx(2_500 * 3.35 / 2.039)
    assert Rate("given", 900, None, None, "").on(70e9, "H200") == 900


def test_a_runs_figures_give_back_what_it_spent() -> None:
    work = work_of_run(COUNTS, 16, "run")
    assert work.tokens == pytest.approx(170_000)
    assert work.prefixes == pytest.approx(300) and work.sampled_rollouts == pytest.approx(3000)
    assert work.rollout_share.value == pytest.approx(3000 / (300 * 16)), "stopped early"
    assert work.kept_share.value == 0.4 and work.chunks.value == 4
    ten_times = with_values(work, {"problems": 1000.0})
    assert ten_times.tokens == pytest.approx(1_700_000)
    rate = rate_of_run(COUNTS, {"gpu_hours": 0.5}, 1e9, "A100", "run")
    assert rate is not None and rate.tokens_per_s == pytest.approx(170_000 / 1800)
    assert rate_of_run(COUNTS, {"gpu_hours": 0.0}, 1e9, "A100", "run") is None
    with pytest.raises(ValueError, match="no rollouts"):
        work_of_run(COUNTS | {"rollouts": 0}, 16, "run")


def test_sizes() -> None:
    assert parse_parameters("7b") == 7.616e9 and parse_parameters("135M") == 135e6
    assert parse_parameters("32B") == 32.76e9 and parse_parameters("34B") == 34e9
    for size in ("big", "0B", "7"):
        with pytest.raises(ValueError, match="size"):
            parse_parameters(size)


def test_parameters_are_counted_in_the_weights(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    assert parameters_of(tmp_path) is None
    save_file({"a": torch.zeros(3, 4)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(5)}, tmp_path / "two.safetensors")
    assert parameters_of(tmp_path) == 17
