"""The learner on a real Ray Train worker group with DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from actors.learner.train import GRPOTrainOptions, train_grpo
from stepwiser.errors import UserError
from stepwiser.training.schedule import LearningRate
from tests.support.scripted_collector import ScriptedCollector
from tests.support.tiny import make_tiny_model
from tests.support.train_options import train_options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

STEPS = 4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    # Wide enough for the embedding to be above ZeRO-3's threshold for keeping a weight whole.
    directory = tmp_path_factory.mktemp("model with a blank")
    return str(make_tiny_model(directory, hidden_size=256))


def _options(directory: Path, model_dir: str, name: str, **changes) -> GRPOTrainOptions:
    given = {
        "steps": STEPS,
        "learning_rate": LearningRate(1e-4, schedule="linear", floor=0.1),
        "checkpoint_every": 2,
    }
    return train_options(directory, model_dir, name, **(given | changes))


def _weights(directory: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(directory) / "model.safetensors")


def _assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def _assert_same_training(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> None:
    """Two runs from ``start`` went the same way, up to the order in which floats were added.

    Every weight to 1e-5, all together to a five-thousandth of the way; but Adam divides by the
    size of the gradient, so where that is nearly 0 rounding alone moves a weight: one in ten
    thousand may be off by up to one whole step, the learning rate.
    """
    assert a.keys() == b.keys()
    for name in a:
        way = np.linalg.norm(b[name] - start[name])
        assert way > 0, name
        gap = np.abs(a[name] - b[name])
        rounded = gap > 1e-5
        assert rounded.mean() <= 1e-4 and gap.max() <= 1e-4, (name, rounded.sum(), gap.max())
        assert np.linalg.norm(gap[~rounded]) < 2e-4 * way, name


@pytest.fixture(scope="module")
def reference(tmp_path_factory, model_dir):
    """Two ZeRO-2 ranks, never interrupted."""
    directory = tmp_path_factory.mktemp("reference")
    collector = ScriptedCollector.remote(model_dir)
    seen = []
    options = _options(directory, model_dir, "reference")
    result = train_grpo(options, collector, seen.append)
    return result, collector, seen


def test_weights_are_published_before_the_first_fetch_and_after_every_step(reference, model_dir):
    result, collector, seen = reference
    calls = ray.get(collector.calls.remote())
    assert calls[0] == ("publish", 0)
    expected = [("publish", 0)]
    for step in range(STEPS):
        expected += [("next_batch", step)] * 2 + [("publish", step + 1)]
    assert calls == expected
    _assert_equal(ray.get(collector.weights.remote(0)), _weights(model_dir))
    assert result.steps == STEPS
    assert [line["step"] for line in seen] == [line["step"] for line in result.metrics]
    for key in ("loss", "reward", "entropy", "gradient_norm", "clip_low", "seconds_train"):
        assert np.isfinite(result.metrics[-1][key]), key


def test_what_was_published_last_is_what_is_exported(reference):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, collector, _ = reference
    _assert_equal(ray.get(collector.weights.remote(STEPS)), _weights(result.model_dir))
    model = AutoModelForCausalLM.from_pretrained(result.model_dir)
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.data_ptr() == embeddings.data_ptr()
    assert AutoTokenizer.from_pretrained(result.model_dir).chat_template


def test_zero_3_with_a_failure_on_the_way_gives_the_same_weights(reference, model_dir, tmp_path):
    result, _, _ = reference
    collector = ScriptedCollector.remote(model_dir, fail_at=3)
    options = _options(tmp_path, model_dir, "zero-3", group={"zero_stage": 3, "max_failures": 1})
    after_failure = train_grpo(options, collector)
    publishes = [v for kind, v in ray.get(collector.calls.remote()) if kind == "publish"]
    # Fails in step 3, goes on from the checkpoint after two updates, publishes that at once.
    assert publishes == [0, 1, 2, 3, 2, 3, 4]
    assert [line["step"] for line in after_failure.metrics] == list(range(STEPS))
    zero_2, zero_3 = _weights(result.model_dir), _weights(after_failure.model_dir)
    for name in zero_2 | zero_3:
        np.testing.assert_allclose(zero_3[name], zero_2[name], rtol=0, atol=1e-5, err_msg=name)


def test_one_rank_in_two_runs_gives_the_same_weights_as_two_ranks(reference, model_dir, tmp_path):
    result, _, _ = reference
    changes = {"group": {"num_workers": 1}}
    options = _options(tmp_path, model_dir, "one-rank", **changes)
    first = ScriptedCollector.remote(model_dir, fail_at=2)
    # The message is the worker's own, not an account of Ray's innards.
    with pytest.raises(UserError, match="^injected failure at step 2$"):
        train_grpo(options, first)
    second = ScriptedCollector.remote(model_dir)
    continued = train_grpo(options, second)
    calls = ray.get(second.calls.remote())
    assert calls[:2] == [("publish", 2), ("next_batch", 2)]
    assert continued.steps == STEPS
    _assert_same_training(
        _weights(continued.model_dir), _weights(result.model_dir), _weights(model_dir)
    )


def test_rewarded_tokens_become_likelier_on_policy(model_dir, tmp_path):
    collector = ScriptedCollector.remote(model_dir, on_policy=True)
    options = _options(
        tmp_path,
        model_dir,
        "on-policy",
        steps=12,
        learning_rate=LearningRate(3e-3),
        checkpoint_every=100,
        logprob_tolerance=1e-4,
    )
    rewards = [line["reward"] for line in train_grpo(options, collector).metrics]
    assert rewards[-1] > rewards[0] + 0.1, rewards
