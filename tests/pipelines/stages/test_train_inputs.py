"""What training reads: prompts of a step, and the discriminative conversations."""

from collections import Counter

from actors.rollout.prompt_source import prompts_of_step
from pipelines.training.baselines import discriminative_examples
from stepwiser.config import load_config
from stepwiser.data.records import JudgePrompt
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.tasks.tokenizer import build_tokenizer
from tests.support.paths import ROOT

PROMPTS = PromptFormat(build_tokenizer(), load_config(ROOT / "configs" / "embedded.yaml").prompts)


def test_a_step_reads_half_of_each_class_and_every_prompt_once_an_epoch() -> None:
    seen: Counter[int] = Counter()
    for step in range(5):
        positive, negative = prompts_of_step(20, 7, 8, step, seed=1)
        assert len(positive) == len(negative) == 4
        seen.update(positive)
    assert seen == Counter(range(20)), "20 positives in 5 steps of 4: each exactly once"


def test_a_step_is_the_same_for_whoever_asks_and_draws_differ() -> None:
    assert prompts_of_step(50, 50, 8, 3, seed=1) == prompts_of_step(50, 50, 8, 3, seed=1)
    assert prompts_of_step(50, 50, 8, 3, seed=1) != prompts_of_step(50, 50, 8, 3, seed=2)
    assert prompts_of_step(50, 50, 8, 3, seed=1) != prompts_of_step(
        50, 50, 8, 3, seed=1, sampling_round=1
    )


def _prompt(index: int, label: bool) -> JudgePrompt:
    chunks = ["buys 64+21=85\n", "doubles 85*2=171\n", "sells 171-3=168\n"]
    return JudgePrompt(
        f"t{index}",
        "t",
        "p",
        "ana has 64 coins. buys 21. doubles them. sells 3. how many?",
        chunks[:index],
        chunks[index],
        index,
        label,
        "abs_q",
        0.5,
        0.5,
        16,
        "train",
    )


def test_discriminative_loss_is_on_the_balanced_verdicts_only() -> None:
    ((ids, mask),) = discriminative_examples([_prompt(2, True), _prompt(1, False)], PROMPTS)
    marked = [PROMPTS.decode_token(token) for token, learn in zip(ids, mask, strict=True) if learn]
    assert marked == ["-", "+"], "chunk 0 was dropped by balancing: context, but no loss"
    assert PROMPTS.decode(ids).endswith("sells 171-3=168\n+")


def test_the_discriminative_prompt_is_a_prefix_of_its_training_conversation() -> None:
    ((ids, _),) = discriminative_examples([_prompt(0, True), _prompt(1, True)], PROMPTS)
    prompt = _prompt(1, True)
    asked = PROMPTS.discriminative_ids(prompt.question, prompt.history, prompt.chunk)
    assert ids[: len(asked)] == asked
    assert len(ids) == len(asked) + 1
