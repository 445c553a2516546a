"""Have the problems of an evaluation set been seen in training? Overlap of word n-grams.

A match is a run of ``n`` words that an evaluation problem and a training problem share (n = 13 is
usual for text), or the same problem word for word. Case, punctuation and layout do not count;
numbers do, so that two problems of one template are not taken for the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SHORTEST = 8
"""Words of the shortest run that can tell: of a shorter problem only a full match counts."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """An evaluation problem and the training problem that shares most with it."""

    item: int
    """Position in the evaluation set, from 0."""
    training: int
    """Position among the training problems, from 0."""
    exact: bool
    """The same words in the same order."""
    shared: int
    """Runs of ``n`` words of the evaluation problem that the training problem has too."""
    of: int
    """Runs of ``n`` words in the evaluation problem."""
    n: int
    """Words of a run: as asked, or all of the shorter of two problems with fewer."""

    @property
    def share(self) -> float:
        return self.shared / self.of


def words_of(text: str) -> Words:
    """Lower-case words and numbers of a text, nothing else."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def find_overlaps(training: Iterable[str], items: Sequence[str], n: int) -> list[Overlap]:
    """What training problems share with evaluation problems; one overlap an item that has any.

    Of several training problems the one with most shared runs counts, the same problem first, then
    the earlier one. Memory goes with the evaluation problems; training is read once.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    item_words = [words_of(text) for text in items]
    exact: dict[Words, list[int]] = {}
    index: dict[int, dict[Words, list[int]]] = {}
    """By length of run: the items that have a run, once for each time they have it."""
    for i, words in enumerate(item_words):
        exact.setdefault(words, []).append(i)
        length = min(n, len(words))
        if length >= min(SHORTEST, n):
            for run in _runs(words, length):
                index.setdefault(length, {}).setdefault(run, []).append(i)
    best: dict[int, Overlap] = {}
    # Training problems with fewer words than n, by their length: a run is all of one of them.
    short: dict[int, dict[Words, int]] = {}
    for number, text in enumerate(training):
        words = words_of(text)
        if not words:
            continue
        for i in exact.get(words, ()):
            if i not in best or not best[i].exact:
                length = min(n, len(words))
                count = len(words) - length + 1
                best[i] = Overlap(i, number, True, count, count, length)
        counts: dict[int, int] = {}
        for length, by_run in index.items():
            for run in set(_runs(words, length)):
                for i in by_run.get(run, ()):
                    counts[i] = counts.get(i, 0) + 1
        for i, count in counts.items():
            if i not in best or (not best[i].exact and count > best[i].shared):
                length = min(n, len(item_words[i]))
                runs = len(item_words[i]) - length + 1
                best[i] = Overlap(i, number, False, count, runs, length)
        if SHORTEST <= len(words) < n:
            short.setdefault(len(words), {}).setdefault(words, number)
    for i, words in enumerate(item_words):
        if i not in best and (found := _holds_whole(i, words, short)):
            best[i] = found
    return [best[i] for i in sorted(best)]


def _holds_whole(
    item: int, words: Words, short: Mapping[int, Mapping[Words, int]]
) -> Overlap | None:
    """A short training problem that stands inside an evaluation problem, the longest first."""
    for length in sorted(short, reverse=True):
        runs = _runs(words, length)
        for run in runs:
            if run in short[length]:
                return Overlap(item, short[length][run], False, 1, len(runs), length)
    return None


def _runs(words: Words, n: int) -> list[Words]:
    """All runs of ``n`` words; none where there are fewer."""
    return [words[i : i + n] for i in range(len(words) - n + 1)]


def check(
    training: Sequence[str], sets: Mapping[str, Sequence[tuple[str, str]]], n: int
) -> dict[str, Any]:
    """Compare every evaluation set with the training problems.

    Args:
        training: problem texts; repeated ones are looked at once.
        sets: by name, (id, problem text) of each item. Several solutions of one problem count as
            the one problem.
        n: words of a run.

    Returns:
        ``n``, ``training_problems``, and by set ``problems``, ``flagged``, ``exact`` and
        ``matches``, the largest overlap first, each with the ids and both texts.
    """
    known = list(dict.fromkeys(training))
    result: dict[str, Any] = {"n": n, "training_problems": len(known), "sets": {}}
    for name, items in sets.items():
        ids: dict[str, list[str]] = {}
        for item_id, text in items:
            ids.setdefault(text, []).append(item_id)
        problems = list(ids)
        overlaps = sorted(
            find_overlaps(known, problems, n), key=lambda o: (-o.exact, -o.share, o.item)
        )
        result["sets"][name] = {
            "problems": len(problems),
            "flagged": len(overlaps),
            "exact": sum(o.exact for o in overlaps),
            "matches": [
                {
                    **asdict(o),
                    "share": o.share,
                    "item_ids": ids[problems[o.item]],
                    "problem": problems[o.item],
                    "training_problem": known[o.training],
                }
                for o in overlaps
            ],
        }
    return result
