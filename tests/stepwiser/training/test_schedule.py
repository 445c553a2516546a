import pytest

from stepwiser.errors import UserError
from stepwiser.training.schedule import LearningRate


def test_warm_up_then_constant():
    rate = LearningRate(1.0, warmup_steps=3)
    assert [rate.at(step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_decay_arrives_at_its_floor_after_the_last_step():
    rate = LearningRate(2.0, schedule="linear", warmup_steps=2, floor=0.25)
    assert rate.at(2, 12) == 2.0
    assert rate.at(7, 12) == pytest.approx(1.25)
    assert rate.at(11, 12) == pytest.approx(0.65)
    assert rate.at(12, 12) == rate.at(50, 12) == pytest.approx(0.5)


def test_no_step_of_a_decay_to_nothing_is_wasted():
    rate = LearningRate(1.0, schedule="linear")
    assert all(rate.at(step, 10) > 0 for step in range(10))


@pytest.mark.parametrize(
    "options",
    [{"peak": 0.0}, {"peak": 1.0, "schedule": "cosine"}, {"peak": 1.0, "floor": 2.0}],
)
def test_nonsense_is_refused(options):
    with pytest.raises(UserError):
        LearningRate(**options)
