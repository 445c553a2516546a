"""The tensors of a micro-batch against plain Hugging Face forwards, one sequence at a time."""

from copy import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from actors.learner import packed_attention, shared_prompt
from actors.learner.batches import ChosenLogprobs, example_tokens, response_batch
from actors.learner.deepspeed_worker import EngineConfig, _load_model
from actors.learner.packed_attention import PADDED, first_right, plain_attention
from actors.learner.shared_prompt import NAME, Layout, attention, register
from stepwiser.errors import UserError
from stepwiser.training.experience import Experience, ExperienceBatch, TokenExamples
from stepwiser.training.grpo import entropy, token_logprobs
from stepwiser.training.packing import shared_prefix
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model twice, in float64: with the attention of transformers, and with prompts shared."""
    from transformers import AutoModelForCausalLM

    directory = str(make_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=256))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    config = EngineConfig(directory, 2, "float32", False, 1.0, 0.0, False, 1)
    return plain, ChosenLogprobs(_load_model(config).double().eval())


@pytest.fixture(scope="module")
def batch():
    """Two responses to one prompt, one to a prompt of one token, a response of one token."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 400, length) for length in (7, 1, 12)]
    return ExperienceBatch.from_experiences(
        [
            Experience(
                prompt_ids=prompts[group],
                response_ids=rng.integers(3, 400, response),
                advantage=float(index),
                reward=0.0,
                group=group,
                weight_version=0,
                engine_logprobs=-rng.random(response),
            )
            for index, (group, response) in enumerate([(0, 5), (1, 9), (2, 1), (0, 3)])
        ]
    )


def _alone(model, batch, temperature):
    """Log-probs of each response, one forward pass a sequence."""
    expected = []
    for i in range(len(batch)):
        whole = np.concatenate([batch.prompt(i), batch.response(i)]).astype(np.int64)
        ids = torch.from_numpy(whole)[None]
        logprobs = token_logprobs(model(input_ids=ids[:, :-1]).logits, ids[:, 1:], temperature)
        expected.append(logprobs[0, len(batch.prompt(i)) - 1 :])
    return expected


@pytest.fixture(params=["padded", "packed"])
def layout_of_attention(request, monkeypatch):
    """Both ways of attention, of which a CPU has one; the other takes a sequence at a time."""
    if request.param == "packed":
        monkeypatch.setattr(shared_prompt, "choose", lambda kind, dtype: ("", plain_attention))


UNITS = [(2,), (0, 3), (1,)]
ORDER = [2, 0, 3, 1]


@pytest.mark.usefixtures("layout_of_attention")
def test_response_logprobs_equal_those_of_each_sequence_alone(models, batch):
    plain, chosen = models
    rows = response_batch(batch, UNITS)
    with torch.no_grad():
        expected = _alone(plain, batch, 0.7)
        flat, _ = chosen(rows.tokens, 0.7)
    spread = rows.spread(flat)
    assert rows.tokens.input_ids.shape == (1, 7 + 1 + 12 + 5 + 9 + 1 + 3)
    assert rows.mask.sum(dim=1).tolist() == [1, 5, 3, 9]
    assert rows.advantages.tolist() == [2.0, 0.0, 3.0, 1.0]
    for row, index in enumerate(ORDER):
        length = len(batch.response(index))
        torch.testing.assert_close(spread[row, :length], expected[index])
        assert not spread[row, length:].any()
        engine = torch.from_numpy(batch.logprobs(index))
        torch.testing.assert_close(rows.engine_logprobs[row, :length], engine)


@pytest.mark.usefixtures("layout_of_attention")
def test_gradients_equal_those_of_each_sequence_alone(models, batch):
    plain, chosen = models
    rows = response_batch(batch, UNITS)
    weights = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    spread = rows.spread(chosen(rows.tokens)[0])
    (spread * weights).sum().backward()
    alone = _alone(plain, batch, 1.0)
    sum(
        (alone[index] * weights[row, : len(alone[index])]).sum() for row, index in enumerate(ORDER)
    ).backward()
    for (name, ours), theirs in zip(
        chosen.model.named_parameters(), plain.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6, msg=name)
        ours.grad = theirs.grad = None


def test_a_masked_micro_batch_has_gradients_that_are_all_zero(models, batch):
    _, chosen = models
    rows = response_batch(batch, [])
    spread = rows.spread(chosen(rows.tokens)[0])
    spread.sum().backward()
    for parameter in chosen.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
        parameter.grad = None


def test_only_unmasked_tokens_are_learned(models):
    plain, chosen = models
    examples = TokenExamples.from_pairs(
        [([10, 11, 12, 13], [1, 0, 1, 0]), ([20, 21, 22, 23, 24], [0, 0, 0, 0, 1])]
    )
    tokens = example_tokens(examples, [1, 0])
    assert tokens.targets.tolist() == [24, 12]
    assert tokens.input_ids[0, tokens.positions].tolist() == [23, 11]
    with torch.no_grad():
        logprobs, entropies = chosen(tokens)
        for row, context in enumerate([[20, 21, 22, 23], [10, 11]]):
            logits = plain(input_ids=torch.tensor([context])).logits[0, -1]
            torch.testing.assert_close(logprobs[row], token_logprobs(logits, tokens.targets[row]))
            torch.testing.assert_close(entropies[row], entropy(logits))


@pytest.mark.usefixtures("layout_of_attention")
def test_what_examples_have_in_common_is_computed_once(models):
    """One learns the very token behind it, one several turns, one only its last token."""
    _, chosen = models
    common = [30, 31, 32, 33, 34, 35]
    examples = TokenExamples.from_pairs(
        [
            ([*common, 10, 11], [0] * 6 + [1, 1]),
            ([*common, 20, 21, 22, 23], [0] * 7 + [1, 0, 1]),
            ([*common, 40, 41, 42], [1] + [0] * 7 + [1]),
        ]
    )
    indices = [2, 0, 1]
    assert shared_prefix(examples, indices) == 6
    found = []
    for shared in (0, 6):
        tokens = example_tokens(examples, indices, shared)
        assert tokens.targets.tolist() == [42, 10, 11, 21, 23]
        assert tokens.input_ids.shape == (1, 27 - 2 * shared)
        logprobs, entropies = chosen(tokens)
        (logprobs * torch.arange(1.0, 6.0)).sum().backward()
        gradients = [parameter.grad.clone() for parameter in chosen.parameters()]
        chosen.zero_grad()
        found.append([logprobs.detach(), entropies, *gradients])
    for whole, once in zip(*found, strict=True):
        torch.testing.assert_close(once, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_what_a_model_does_to_its_logits_counts(batch, scaling):
    from transformers import AutoModelForCausalLM, GraniteConfig

    sizes = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = GraniteConfig(
        **sizes, num_attention_heads=1, num_key_value_heads=1, logits_scaling=scaling
    )
    register()
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    own = AutoModelForCausalLM.from_config(copy(config), attn_implementation=NAME).double().eval()
    own.load_state_dict(plain.state_dict())
    chosen = ChosenLogprobs(own)
    rows = response_batch(batch, UNITS)
    with torch.no_grad():
        expected = _alone(plain, batch, 0.7)
        flat, _ = chosen(rows.tokens, 0.7)
    torch.testing.assert_close(flat, torch.cat([expected[index] for index in ORDER]))
    assert chosen._in_blocks == (scaling == 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sliding_window": 8}, "last 8 tokens"), ({"softcap": 30.0}, "uses softcap")],
)
def test_attention_that_does_more_is_refused(options, message):
    layout = Layout.of([9])
    query = torch.zeros(1, 2, 9, 4)
    with pytest.raises(UserError, match=message):
        attention(None, query, query, query, None, layout=layout, scaling=1.0, **options)


def test_a_kernel_that_is_not_attention_is_not_used(caplog):
    cpu = torch.device("cpu")

    def broken(*given):
        raise RuntimeError("no kernel image")

    def sees_too_little(queries, keys, values, packing, scale):
        # As kernels that count places from the beginning: a response sees part of its prompt.
        ends = packing.query_ends, packing.key_ends, packing.key_ends
        rows = [
            t.split(e.diff().tolist()) for t, e in zip((queries, keys, values), ends, strict=True)
        ]
        parts = [
            scaled_dot_product_attention(
                *(t.transpose(0, 1)[None] for t in part),
                is_causal=True,
                scale=scale,
                enable_gqa=True,
            )
            for part in zip(*rows, strict=True)
        ]
        return torch.cat([part[0].transpose(0, 1) for part in parts])

    wrong = [("broken", broken), ("short", sees_too_little)]
    assert first_right(wrong, cpu, torch.float32) == (PADDED, None)
    assert "broken cannot be used: no kernel image" in caplog.text
    assert "short is not used: it differs from attention by" in caplog.text
    right = ("plain", plain_attention)
    with torch.no_grad():  # as the first pass of a step may be
        assert first_right([*wrong, right], cpu, torch.float32) == right
    assert packed_attention.choose("cpu", torch.bfloat16) == (PADDED, None)


@pytest.mark.gpu
def test_kernels_of_this_gpu_are_attention():
    device, found = torch.device("cuda"), packed_attention._installed()
    assert found, "neither flash-attn nor PyTorch's varlen attention is there"
    for name, kernel in found:
        gap = packed_attention.difference(kernel, device, torch.bfloat16)
        assert gap <= packed_attention.TOLERANCE, name
    assert packed_attention.choose("cuda", torch.bfloat16)[0] == found[0][0]
