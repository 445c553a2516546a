"""The ``<chunk>`` format: parsing, rendering, token boundaries (paper: chunks-of-thought).

One grammar serves every reader: :class:`ChunkStream` is the state machine, and the whole-text
functions feed it once. A tag is exactly ``<chunk>`` or ``</chunk>``; anything else is plain text.
Before the first chunk a model may think (`thinking`): what stands there is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepwiser.prompting.thinking import MARKERS, UNFINISHED, may_open, opening_marker

OPEN = "<chunk>"
CLOSE = "</chunk>"

GUESSES = 4
"""Places that `token_ends` tries for one end before it goes on by halves."""

_TAG = re.compile(r"</?chunk>")
_PARTIAL_TAG = re.compile(r"<(?:/?(?:c(?:h(?:u(?:nk?)?)?)?)?)?\Z")
_PARAGRAPH_BREAK = re.compile(r"(?<=\n\n)(?!\n)")


@dataclass(frozen=True)
class ParsedChunks:
    """A well-formed response."""

    texts: tuple[str, ...]
    """What stands between the tags, unchanged, one string a chunk."""
    ends: tuple[int, ...]
    """Character offset in the parsed text just after each ``</chunk>``."""
    tail: str
    """What follows the last ``</chunk>``: whitespace, or the answer part."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Chunk texts as a judge reads them: a tail that says something belongs to the last."""
        if not self.tail.strip():
            return self.texts
        return (*self.texts[:-1], self.texts[-1] + self.tail)


class ChunkStream:
    """Incremental parser for text that arrives in pieces; a tag may be split between pieces.

    ``feed`` returns the chunks that closed within the new piece. Malformed text is a property of
    the data, not a programming error, so it is reported in ``problem`` (empty while all is well)
    instead of being raised; nothing more is parsed after it.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ends: list[int] = []
        self.problem = ""
        self._inside = False
        self._region: list[str] = []  # text since the last tag
        self._pending = ""  # may turn out to be the beginning of a tag
        self._offset = 0  # characters before the pending ones
        self._begun = False  # past the place where thinking may begin
        self._closing = ""  # marker that will end the thinking

    @property
    def inside(self) -> bool:
        """Whether a chunk is open now."""
        return self._inside

    @property
    def open_text(self) -> str:
        """Text since the last tag: the open chunk's so far, or the tail when none is open."""
        return "".join(self._region) + self._pending

    def feed(self, text: str) -> list[str]:
        """Take the next piece of text; return the texts of the chunks that it closed."""
        if self.problem:
            return []
        already_closed = len(self.texts)
        buffer = self._after_thinking(self._pending + text)
        if buffer is None:
            return []
        done = 0
        for tag in _TAG.finditer(buffer):
            self._region.append(buffer[done : tag.start()])
            done = tag.end()
            self._take_tag(tag.group(), self._offset + tag.start())
            if self.problem:
                return self.texts[already_closed:]
        partial = _PARTIAL_TAG.search(buffer, max(done, len(buffer) - len(CLOSE)))
        cut = partial.start() if partial else len(buffer)
        self._region.append(buffer[done:cut])
        self._pending = buffer[cut:]
        self._offset += cut
        return self.texts[already_closed:]

    def close(self) -> str:
        """Say that the text has ended; return ``problem``."""
        if not self.problem:
            if self._closing:
                self.problem = f"{UNFINISHED}: no {self._closing}"
            elif self._inside:
                self.problem = f"missing closing tag: chunk {len(self.texts) + 1} never ends"
            elif not self.texts:
                self.problem = "no chunk: the text has no <chunk> tag"
        return self.problem

    def _after_thinking(self, buffer: str) -> str | None:
        """What of the buffer is to be parsed; None while that is not known or still thinking."""
        if not self._begun:
            opening = opening_marker(buffer)
            if opening is None and may_open(buffer):
                self._pending = buffer
                return None
            self._begun = True
            if opening is not None:
                self._closing = MARKERS[opening[1]]
                buffer = self._skip(buffer, opening.end())
        if self._closing:
            end = buffer.find(self._closing)
            if end < 0:
                # The end may be the beginning of the marker.
                self._pending = self._skip(buffer, max(0, len(buffer) - len(self._closing) + 1))
                return None
            buffer = self._skip(buffer, end + len(self._closing))
            self._closing = ""
        return buffer

    def _skip(self, buffer: str, count: int) -> str:
        self._offset += count
        return buffer[count:]

    def _take_tag(self, tag: str, start: int) -> None:
        region = "".join(self._region)
        self._region.clear()
        if tag == CLOSE:
            if not self._inside:
                self.problem = f"unbalanced: </chunk> at character {start} closes nothing"
                return
            self.texts.append(region)
            self.ends.append(start + len(CLOSE))
        elif self._inside:
            number = len(self.texts) + 1
            self.problem = f"nested: <chunk> at character {start} inside chunk {number}"
            return
        elif region.strip() and (self.texts or not _ends_thinking(region)):
            where = "between chunks" if self.texts else "before the first chunk"
            self.problem = f"text {where}: {_shorten(region)!r} before character {start}"
            return
        self._inside = tag == OPEN


def parse_chunks(text: str) -> ParsedChunks | None:
    """Parse a whole response; ``None`` when it is malformed (``explain_malformed`` says why).

    Well-formed: at least one chunk, tags balanced and never nested, nothing but whitespace outside
    them, except a tail after the last ``</chunk>``.
    """
    stream = ChunkStream()
    stream.feed(text)
    if stream.close():
        return None
    return ParsedChunks(tuple(stream.texts), tuple(stream.ends), stream.open_text)


def explain_malformed(text: str) -> str:
    """Why ``parse_chunks`` rejects the text; empty when it does not."""
    stream = ChunkStream()
    stream.feed(text)
    return stream.close()


def strip_tags(text: str) -> str:
    """The text without any chunk tag; everything else stays, whitespace included."""
    return _TAG.sub("", text)


def render_chunks(texts: Sequence[str]) -> str:
    """Write chunk texts in tags, one directly after the other.

    Raises:
        ValueError: no text, or a text that has a tag in it.
    """
    if not texts:
        raise ValueError("render_chunks needs at least one chunk, got none")
    for number, text in enumerate(texts, start=1):
        if _TAG.search(text):
            raise ValueError(f"chunk {number} already has a chunk tag in it: {_shorten(text)!r}")
    return "".join(f"{OPEN}{text}{CLOSE}" for text in texts)


def is_exact_segmentation(original: str, segmented: str) -> bool:
    """Whether a segmenter did nothing but insert tags (the paper keeps only such segmentations).

    Without the tags the segmentation equals the original to the character, nothing but whitespace
    stands outside the tags, and no chunk is empty. An original with tags of its own has no exact
    segmentation, since its tags could not be told from the inserted ones.
    """
    if _TAG.search(original) or strip_tags(segmented) != original:
        return False
    parsed = parse_chunks(segmented)
    if parsed is None or parsed.tail.strip():
        return False
    return all(text.strip() for text in parsed.texts)


def split_paragraphs(text: str) -> list[str]:
    """Steps of the ``\\n\\n`` baseline; joined they give back the text.

    A break belongs to the paragraph before it. A piece of whitespace alone is no step: it goes to
    its neighbour. The empty text has no steps.
    """
    steps: list[str] = []
    for piece in _PARAGRAPH_BREAK.split(text):
        if steps and (not piece.strip() or not steps[-1].strip()):
            steps[-1] += piece
        elif piece:
            steps.append(piece)
    return steps


def token_ends(
    token_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    ends: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """For each chunk, the least number of leading tokens that hold it and its ``</chunk>``.

    Args:
        token_ids: the response's ids, ``[n]``.
        decode: ids to text, the same for every prefix.
        ends: strictly rising character offsets in ``decode(token_ids)``; by default the chunk ends
            of that text. Pass the running lengths of ``split_paragraphs`` for the baseline.

    A token may straddle an end: the prefix then holds a few characters more. Prefixes are compared
    as text, not by length, so that a character cut in the middle of its bytes (which decodes to one
    or more U+FFFD) is never taken for the character itself. Decodings are what costs: an end is
    looked for where the average length of a token puts it, and from there on by halves.

    Raises:
        ValueError: malformed text (when ``ends`` is not given), or offsets that do not rise or lie
            outside the text.
    """
    text = decode(token_ids)
    if ends is None:
        parsed = parse_chunks(text)
        if parsed is None:
            raise ValueError(f"response is not in chunks: {explain_malformed(text)}")
        ends = parsed.ends
    counts: list[int] = []
    low, previous = 0, 0
    length = max(1.0, len(text) / max(1, len(token_ids)))  # characters of a token
    for end in ends:
        if not previous < end <= len(text):
            raise ValueError(
                f"chunk ends must rise from above 0 to at most {len(text)}, got {list(ends)}"
            )
        wanted = text[:end]
        high = len(token_ids)  # all tokens hold every end
        guess, guesses = low + round((end - previous) / length), 0
        while low < high:
            if guesses == GUESSES:
                guess = (low + high) // 2
            else:
                guesses += 1
            middle = min(max(guess, low), high - 1)
            prefix = decode(token_ids[:middle])
            if prefix.startswith(wanted):
                high = middle
                guess = middle - max(1, int((len(prefix) - end) / length))
            else:
                low = middle + 1
                guess = middle + max(1, round((end - len(prefix)) / length))
        counts.append(low)
        previous = end
    return tuple(counts)


def _ends_thinking(region: str) -> bool:
    """Whether what stands before the first chunk is thinking that the prompt had opened."""
    return region.rstrip().endswith(tuple(MARKERS.values()))


def _shorten(text: str, limit: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
