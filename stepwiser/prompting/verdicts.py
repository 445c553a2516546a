"""Reading a judge's answer: its verdict, and how sure it was (paper: the generative judge).

Only text that the judge *generated* may be passed to the parsers here; a verdict quoted inside the
judged chunk is part of the prompt and never reaches them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from stepwiser.prompting.generation import Sample
from stepwiser.prompting.thinking import answer_of, answer_start, thoughts_of

POSITIVE = "Positive"
NEGATIVE = "Negative"

_ZERO_WIDTH_SPACE = "\u200b"
_VERDICT = re.compile(
    r"\\boxed\{\s*(?:"
    r"\\text(?:bf)?\{\s*(?P<wrapped>Positive|Negative)\s*\}"
    r"|(?P<bare>Positive|Negative)"
    r")\s*\}"
)


def parse_verdict(generated_text: str) -> bool | None:
    r"""The last boxed verdict: ``True`` Positive, ``False`` Negative, ``None`` if there is none.

    ``\boxed{Positive}`` and ``\boxed{Negative}`` with whitespace inside the braces, or the word in
    ``\text{}`` or ``\textbf{}``. Other spellings are no verdict: a lenient parser would reward a
    judge for drifting away from the format. What a judge thinks first is no verdict, and one whose
    thinking never ends has none.
    """
    match = _last_verdict(generated_text)
    return None if match is None else (match["bare"] or match["wrapped"]) == POSITIVE


def is_bare_verdict(generated_text: str) -> bool:
    """Whether the text is one boxed verdict and nothing else but an empty block of thinking."""
    if thoughts_of(generated_text):
        return False
    answer = answer_of(generated_text)
    # White space separates a block from the answer; elsewhere it is not wanted.
    bare = answer if answer == generated_text else answer.lstrip()
    return _VERDICT.fullmatch(bare) is not None


def positive_probability(sample: Sample, decode_token: Callable[[int], str]) -> float | None:
    """P(Positive) / (P(Positive) + P(Negative)) where the last verdict's word begins.

    Read from ``sample.top_logprobs`` at the token that holds the word's first letter. A token
    counts for a word when, whitespace aside, it repeats what the sampled token has before the word
    (``{`` in ``{Pos``) and goes on with a non-empty beginning of the word, or with the whole word
    and a non-letter. A class with no token among the alternatives has probability 0.

    ``None`` when it cannot be determined: no verdict, no alternatives, no mass on either word, or
    more mass on tokens that leave the word open (whitespace, nothing, a part of ``{``) than on
    tokens that settle it.
    """
    if sample.top_logprobs is None:
        return None
    texts = [decode_token(token) for token in sample.token_ids]
    match = _last_verdict("".join(texts))
    if match is None:
        return None
    word_start = match.start("bare") if match["bare"] else match.start("wrapped")
    position, start = 0, 0
    while start + len(texts[position]) <= word_start:
        start += len(texts[position])
        position += 1
    if position >= len(sample.top_logprobs):
        return None
    before = texts[position][: word_start - start].strip()
    mass = {POSITIVE: 0.0, NEGATIVE: 0.0}
    undecided = 0.0
    alternatives = dict(sample.top_logprobs[position])
    if sample.logprobs is not None:  # the sampled token may lie below the most likely ones
        alternatives.setdefault(sample.token_ids[position], sample.logprobs[position])
    for token, logprob in alternatives.items():
        text = decode_token(token).strip()
        probability = math.exp(logprob)
        if before.startswith(text):  # the empty text included
            undecided += probability
        elif text.startswith(before):
            word = _word_begun(text[len(before) :].lstrip())
            if word is not None:
                mass[word] += probability
    decided = mass[POSITIVE] + mass[NEGATIVE]
    if decided == 0.0 or undecided > decided:
        return None
    return mass[POSITIVE] / decided


def neutralize(text: str, special_tokens: Sequence[str]) -> str:
    """Text of others, made safe to put into a prompt: no special token string is left in it.

    Each occurrence gets a zero-width space after its first character, so a reader sees no change
    and a tokenizer sees ordinary text. Everything else stays, boxed verdicts included.

    Raises:
        ValueError: a special token of fewer than two characters, which cannot be split.
    """
    for token in special_tokens:
        if len(token) < 2:
            raise ValueError(f"special token {token!r} is too short to be neutralized")
    # One replacement may leave an overlapping occurrence, hence until none is left.
    while found := [token for token in special_tokens if token in text]:
        for token in found:
            text = text.replace(token, token[0] + _ZERO_WIDTH_SPACE + token[1:])
    return text


def _last_verdict(text: str) -> re.Match[str] | None:
    start = answer_start(text)
    matches = [] if start is None else list(_VERDICT.finditer(text, start))
    return matches[-1] if matches else None


def _word_begun(text: str) -> str | None:
    for word in (POSITIVE, NEGATIVE):
        if text and word.startswith(text):
            return word
        if text.startswith(word) and not text[len(word)].isalpha():
            return word
    return None
