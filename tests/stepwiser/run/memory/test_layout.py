"""Which process lies on which card, for every shape that has a scenario, and what is refused."""

from collections import defaultdict

import pytest

from stepwiser.annotation.cost import PARAMETERS
from stepwiser.config import RunConfig, load_config
from stepwiser.run.memory.layout import ENOUGH, Layout, lay_out, what_fits
from stepwiser.run.memory.machines import parse_machines
from stepwiser.run.memory.model_size import QWEN, ModelSize, known_size
from stepwiser.run.memory.remedies import with_settings
from stepwiser.run.resource_plan import plan_stage
from tests.support.paths import ROOT

MADE_FOR = {
    "a100/1.5b-1gpu": ("A100", "A100-40GB"),
    "paper-1.5b": ("8xA100", "8xA100-40GB", "8xH100"),
    "a100/1.5b-4x8": ("4x8xA100", "4x8xA100-40GB"),
    "a100/7b-1gpu": ("A100",),
    "paper-7b": ("8xA100", "8xH100"),
    "train-8xa100-7b": ("8xA100", "8xH100"),
    "train-multinode-a100": ("4x8xA100", "4x8xA100-40GB"),
    "a100/32b-8gpu": ("8xA100", "8xH100"),
    "a100/32b-4x8": ("4x8xA100", "32xH100"),
}
"""Scenarios and the machines that they are said to be for."""


def _config(name: str) -> tuple[RunConfig, ModelSize]:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    size = known_size(config.policy_model)
    assert size is not None
    return config, size


def test_every_scenario_for_a100_is_planned_here() -> None:
    there = {f"a100/{path.stem}" for path in (ROOT / "configs/a100").iterdir()}
    assert there == {name for name in MADE_FOR if name.startswith("a100/")}


@pytest.mark.parametrize(
    ("name", "gpus"), [(name, gpus) for name, all_ in MADE_FOR.items() for gpus in all_]
)
@pytest.mark.parametrize("stage", ["annotate", "train"])
def test_placement_adds_up(name: str, gpus: str, stage: str) -> None:
    config, size = _config(name)
    machines = parse_machines(gpus)
    assert config.cluster.expected_gpus == machines.gpus
    found = lay_out(config, stage, size, machines)
    assert found.problems == ()
    needs = {need.role: need for need in plan_stage(config, stage).needs}
    assert {role: sum(s.role == role for s in found.seats) for role in needs} == {
        role: need.count for role, need in needs.items()
    }
    taken: dict[tuple[int, int], float] = defaultdict(float)
    for seat in found.seats:
        gpus_each = needs[seat.role].gpus
        # All cards of an engine are of one machine: tensor parallelism does not cross the network.
        assert 0 <= seat.node < machines.nodes and set(seat.cards) <= set(range(machines.cards))
        assert len(seat.cards) == len(set(seat.cards)) == max(1, gpus_each)
        if seat.role != "learner":
            assert len(seat.cards) == config.engine.tensor_parallel_size
        for card in seat.cards:
            taken[seat.node, card] += min(1.0, gpus_each)
    assert max(taken.values()) <= 1 + 1e-9
    if stage == "train":
        assert len(taken) == machines.gpus, "no card is idle while it trains"
    for line in found.lines:
        assert 0 < line.needed <= line.limit <= machines.card.memory
        assert line.sequences is None or line.sequences >= ENOUGH


def test_sizes_are_those_of_their_shapes() -> None:
    for name, size in QWEN.items():
        assert size.parameters == pytest.approx(PARAMETERS[name], rel=1e-3)
        # Embeddings (tied at 1.5B), attention with biases of queries, keys and values, and gates.
        keys = size.kv_heads * size.head_dim
        layer = 2 * size.hidden * (size.attention + keys) + size.attention + 2 * keys
        layer += 3 * size.hidden * size.intermediate + 2 * size.hidden
        ends = size.vocabulary * size.hidden * (1 if name == "1.5B" else 2) + size.hidden
        assert size.layers * layer + ends == pytest.approx(size.parameters, rel=1e-3)
    assert known_size("Qwen/Qwen2.5-7B-Instruct") is QWEN["7B"]
    assert known_size("Qwen/Qwen2.5-32B-Instruct@main") is QWEN["32B"]
    assert known_size("Qwen/Qwen2.5-0.5B-Instruct") is known_size("embedded") is None


def test_memory_of_a_rank_by_hand() -> None:
    # 7B over 4 ranks: 2 bytes of weights, 12 of master and moments, 4 of gradients, and a bucket.
    config, size = _config("train-8xa100-7b")
    (engine, learner) = lay_out(config, "train", size, parse_machines("8xA100")).lines
    share = size.parameters / 4
    assert learner.parts["weights"] == pytest.approx(2 * share)
    assert learner.parts["optimizer"] == pytest.approx(12 * share)
    assert learner.parts["gradients"] == pytest.approx(4 * share + 2 * 500_000_000)
    assert engine.parts["weights"] == pytest.approx(2 * size.parameters)
    # Keys and values of 28 layers, 4 heads of 128, two bytes each.
    assert engine.parts["KV cache"] == 6192 * 2 * 28 * 4 * 128 * 2
    left = engine.limit - engine.needed + engine.parts["KV cache"]
    assert engine.sequences == pytest.approx(left / engine.parts["KV cache"])


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("paper-7b", "4xA100", "find no room on 4xA100"),
        ("paper-7b", "8xA100-40GB", "learner: 4"),
        ("a100/32b-4x8", "4x8xA100-40GB", "engine (one sequence)"),
        ("a100/32b-8gpu", "8xA100-40GB", "engine (one sequence)"),
        ("embedded", "8xA100", "uses no GPU"),
    ],
)
def test_what_does_not_fit_says_why_and_what_would(name: str, gpus: str, words: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    size = known_size(config.policy_model) or QWEN["1.5B"]
    machines = parse_machines(gpus)
    refused = lay_out(config, "train", size, machines)
    assert any(words in problem for problem in refused.problems), refused.problems
    fitting = what_fits(config, "train", size, machines)
    assert fitting is not None
    changed = with_settings(config, ["train"], fitting[1])
    assert changed is not None
    assert not lay_out(changed, "train", size, fitting[0]).problems


def test_each_size_on_each_machine() -> None:
    """How a stage is shared where nobody says: by settings, or by more machines, or not at all."""
    config, _ = _config("paper-7b")

    def fits(stage: str, model: str, gpus: str) -> tuple[str, dict]:
        found = what_fits(config, stage, QWEN[model], parse_machines(gpus))
        return ("", {}) if found is None else (str(found[0]), dict(found[1]))

    where, settings = fits("train", "1.5B", "A100")
    assert where == "1xA100" and settings["train.colocated"] and "learner.lora.rank" not in settings
    where, settings = fits("train", "7B", "A100")
    assert where == "1xA100" and settings["learner.lora.rank"] == 16
    where, settings = fits("train", "7B", "8xA100")
    assert where == "8xA100" and settings["learner.workers"] == 4
    where, settings = fits("train", "32B", "8xA100")
    assert where == "8xA100" and settings["learner.lora.rank"] == 16
    assert settings["engine.tensor_parallel_size"] == 2, "one card would hold few sequences"
    where, settings = fits("train", "32B", "4x8xA100")
    assert where == "4x8xA100" and "learner.lora.rank" not in settings
    assert fits("annotate", "32B", "A100-40GB") == ("", {}), "more machines do not widen an engine"


def test_machines_by_their_words() -> None:
    for text, shape in (
        ("8xA100", (1, 8, "A100")),
        ("h100", (1, 1, "H100")),
        ("4x8xA100-40GB", (4, 8, "A100-40GB")),
        ("32xA100-80GB", (4, 8, "A100")),
        ("16 x H200", (2, 8, "H200")),
        ("2x4xA100", (2, 4, "A100")),
    ):
        found = parse_machines(text)
        assert (found.nodes, found.cards, found.card.name) == shape
    for text in ("0xA100", "A100x8x", "8", "8xTPU", "12xA100", "2x16xA100", "0x8xA100"):
        with pytest.raises(ValueError, match="gpus"):
            parse_machines(text)


def test_a_layout_without_engines_or_room_says_so() -> None:
    config, size = _config("paper-7b")
    assert isinstance(lay_out(config, "report", size, parse_machines("A100")), Layout)
    assert lay_out(config, "report", size, parse_machines("A100")).seats == ()
