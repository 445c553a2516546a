"""The chunk format against hand-made texts, random splits and tokenizers that cut characters."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from stepwiser.prompting.chunks import (
    ChunkStream,
    explain_malformed,
    is_exact_segmentation,
    parse_chunks,
    render_chunks,
    split_paragraphs,
    strip_tags,
    token_ends,
)

GOOD = "\n<chunk>first\nline</chunk>\n <chunk>second ½</chunk>\nso \\boxed{3}"


def test_parse_gives_texts_ends_and_tail() -> None:
    parsed = parse_chunks(GOOD)
    assert parsed is not None
    assert parsed.texts == ("first\nline", "second ½")
    assert [GOOD[:end].endswith("</chunk>") for end in parsed.ends] == [True, True]
    assert GOOD[parsed.ends[-1] :] == parsed.tail == "\nso \\boxed{3}"
    assert parsed.steps == ("first\nline", "second ½\nso \\boxed{3}")


def test_whitespace_tail_is_not_judged() -> None:
    parsed = parse_chunks("<chunk>a</chunk> \n")
    assert parsed is not None
    assert parsed.steps == ("a",)
    assert parsed.tail == " \n"


def test_other_angle_brackets_are_text() -> None:
    text = "<chunk>a < b, <Chunk>, </chunks>, <chunk </chunk>"
    parsed = parse_chunks(text)
    assert parsed is not None
    assert parsed.texts == ("a < b, <Chunk>, </chunks>, <chunk ",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no chunk"),
        ("just prose", "no chunk"),
        ("<chunk>a", "missing closing tag: chunk 1"),
        ("<chunk>a</chunk><chunk>b</chun", "missing closing tag: chunk 2"),
        ("<chunk>a<chunk>b</chunk></chunk>", "nested: <chunk> at character 8 inside chunk 1"),
        ("<chunk>a</chunk></chunk>", "unbalanced: </chunk> at character 16"),
        ("</chunk>", "unbalanced"),
        ("<chunk>a</chunk> and <chunk>b</chunk>", "text between chunks: 'and'"),
        ("Well: <chunk>a</chunk>", "text before the first chunk: 'Well:'"),
    ],
)
def test_malformed_is_none_and_says_why(text: str, reason: str) -> None:
    assert parse_chunks(text) is None
    assert explain_malformed(text).startswith(reason)


def test_well_formed_has_no_complaint() -> None:
    assert explain_malformed(GOOD) == ""


def test_render_and_strip_are_inverse() -> None:
    texts = ("a\n", " b", "")
    rendered = render_chunks(texts)
    assert strip_tags(rendered) == "a\n b"
    parsed = parse_chunks(rendered)
    assert parsed is not None and parsed.texts == texts


@pytest.mark.parametrize("texts", [[], ["a</chunk>b"]])
def test_render_refuses(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="chunk"):
        render_chunks(texts)


@pytest.mark.parametrize(
    ("segmented", "exact"),
    [
        ("<chunk>a b\n\n</chunk><chunk>c</chunk>", True),
        ("<chunk>a b</chunk>\n\n<chunk>c</chunk>", True),
        ("<chunk>a b\n\nc</chunk>", True),
        ("<chunk>a b</chunk>\n<chunk>c</chunk>", False),  # a line break lost
        ("<chunk>a b\n\n</chunk>c", False),  # text outside
        ("a b\n\n<chunk>c</chunk>", False),
        ("<chunk>a  b\n\n</chunk><chunk>c</chunk>", False),  # a space added
        ("<chunk>a b</chunk><chunk>\n\n</chunk><chunk>c</chunk>", False),  # blank chunk
        ("<chunk>a b\n\nc</chunk><chunk></chunk>", False),  # empty chunk
        ("a b\n\nc", False),
    ],
)
def test_exact_segmentation(segmented: str, exact: bool) -> None:
    assert is_exact_segmentation("a b\n\nc", segmented) is exact


def test_original_with_tags_has_no_exact_segmentation() -> None:
    assert not is_exact_segmentation("<chunk>a</chunk>", "<chunk>a</chunk>")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\nb", ["a\nb"]),
        ("a\n\nb\n\n\nc", ["a\n\n", "b\n\n\n", "c"]),
        ("\n\na\n\n \n\nb\n\n", ["\n\na\n\n \n\n", "b\n\n"]),
        ("\n\n", ["\n\n"]),
    ],
)
def test_paragraphs(text: str, steps: list[str]) -> None:
    assert split_paragraphs(text) == steps


def test_paragraphs_are_lossless_and_never_blank() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("ab \n", [1, 1, 1, 4], k=rng.randrange(30)))
        steps = split_paragraphs(text)
        assert "".join(steps) == text
        if text.strip():
            assert all(step.strip() for step in steps)


@pytest.mark.parametrize("text", [GOOD, "<chunk>a<chu</chunk><</chunk>", "x<chunk>y", "<chunk>a<"])
def test_stream_agrees_with_parse_however_text_is_cut(text: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(12)))
        stream = ChunkStream()
        closed: list[str] = []
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
            closed += stream.feed(text[a:b])
        stream.close()
        assert stream.problem == explain_malformed(text)
        assert closed == stream.texts
        if parsed := parse_chunks(text):
            assert (tuple(stream.texts), tuple(stream.ends)) == (parsed.texts, parsed.ends)
            assert stream.open_text == parsed.tail


def test_stream_says_when_a_chunk_closes() -> None:
    stream = ChunkStream()
    assert stream.feed("<chunk>64+21") == []
    assert stream.inside and stream.open_text == "64+21"
    assert stream.feed("=85</chu") == []
    assert stream.feed("nk><chunk>b</chunk> ") == ["64+21=85", "b"]
    assert not stream.inside and stream.problem == ""


class ByteTokens:
    """Ids are byte pieces, as in byte-level BPE; an incomplete character decodes to U+FFFD."""

    def __init__(self, text: str, rng: random.Random, longest: int) -> None:
        data, self.pieces = text.encode(), []
        while data:
            size = rng.randint(1, longest)
            self.pieces.append(data[:size])
            data = data[size:]
        self.ids = list(range(len(self.pieces)))
        self.decodings = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.decodings += 1
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


class ByteFallbackTokens(ByteTokens):
    """As SentencePiece: every stray byte becomes a U+FFFD, so a prefix may decode *longer*."""

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(self.pieces[i] for i in ids)
        text = data.decode(errors="ignore")
        return text + "\ufffd" * (len(data) - len(text.encode()))


@pytest.mark.parametrize("kind", [ByteTokens, ByteFallbackTokens])
def test_token_ends_are_the_smallest_covering_prefixes(kind: type[ByteTokens]) -> None:
    text = "<chunk>😀 π≈3</chunk> <chunk>¼→😀</chunk><chunk>é</chunk>😀 so 3"
    parsed = parse_chunks(text)
    assert parsed is not None
    rng = random.Random(2)
    for _ in range(100):
        tokens = kind(text, rng, longest=rng.choice([1, 3, 12]))
        counts = token_ends(tokens.ids, tokens.decode)
        for count, end in zip(counts, parsed.ends, strict=True):
            assert tokens.decode(tokens.ids[:count]).startswith(text[:end])
            assert not tokens.decode(tokens.ids[: count - 1]).startswith(text[:end])


def test_token_ends_with_given_offsets_and_cut_character() -> None:
    text = "né\n\n½😀"
    rng = random.Random(3)
    for kind in (ByteTokens, ByteFallbackTokens):
        tokens = kind(text, rng, longest=1)
        assert token_ends(tokens.ids, tokens.decode, [4, 5, 6]) == (5, 7, 11)


def test_token_ends_with_a_trained_byte_level_tokenizer() -> None:
    """Merges of ``>`` with what follows make tokens that straddle the chunk ends."""
    from tokenizers import ByteLevelBPETokenizer

    text = "<chunk>2·½ = 1 😀</chunk>\n<chunk>so «π»</chunk>\n\\boxed{1}😀"
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text] * 50, vocab_size=330, show_progress=False)
    ids = tokenizer.encode(text).ids
    parsed = parse_chunks(text)
    assert parsed is not None
    counts = token_ends(ids, tokenizer.decode, parsed.ends)
    assert counts == token_ends(ids, tokenizer.decode)
    for count, end in zip(counts, parsed.ends, strict=True):
        assert tokenizer.decode(ids[:count]).startswith(text[:end])
        assert not tokenizer.decode(ids[: count - 1]).startswith(text[:end])


def test_token_ends_takes_few_decodings() -> None:
    text = render_chunks(["x" * 500] * 8)
    tokens = ByteTokens(text, random.Random(4), longest=1)
    token_ends(tokens.ids, tokens.decode)
    assert tokens.decodings <= 1 + 8 * 13  # log2(4120) < 13


def test_token_ends_refuses() -> None:
    tokens = ByteTokens("<chunk>a", random.Random(5), longest=2)
    with pytest.raises(ValueError, match="missing closing tag"):
        token_ends(tokens.ids, tokens.decode)
    for ends in ([9], [0], [4, 4]):
        with pytest.raises(ValueError, match="must rise"):
            token_ends(tokens.ids, tokens.decode, ends)
