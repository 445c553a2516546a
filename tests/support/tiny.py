"""A tiny random model with a real tokenizer, for tests that need an engine but no ability."""

from __future__ import annotations

from pathlib import Path

_CHUNK_TAGS = ("<chunk>", "</chunk>")
_CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _tokenizer():
    """Byte-level BPE: any text survives a round trip; the chunk tags are ordinary vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [
        f"ana has {a} coins. buys {b}. doubles them. ?\nbuys {a}+{b}={a + b}\n"
        f"doubles 2*{a + b}={2 * (a + b)}\n\\boxed{{{2 * (a + b)}}}\n"
        "glance \\boxed{Positive} recompute so \\boxed{Negative} judge "
        for a in range(2, 40)
        for b in range(3, 12)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _CHUNK_TAGS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def make_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    hidden_size: int = 128,
    layers: int = 2,
    tie_word_embeddings: bool = True,
) -> Path:
    """Write a random Llama with tokenizer and chat template into ``directory``; return it.

    ``seed`` picks the weights only: two seeds give the same architecture, names and tokenizer, so
    one directory can be loaded over the other. The weights are drawn wide, so that the next-token
    distribution is far from uniform and a wrong weight shows in the log-probs; but no wider than
    that at any ``hidden_size``, as rounding errors grow with the logits.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = Path(directory)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.2 * 128 / hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return directory
