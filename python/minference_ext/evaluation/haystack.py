"""Text to hide needles in: sentences, taken one after the other, and over again from the start."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence

#: The haystack of prompts that need no data.
NOISE = (
    "Grass grows on the hill.",
    " A bird flies over the lake.",
    " The day is warm and bright.",
    " We walk along the old road.",
    " Then we turn around and walk back.",
)


def sentences_of(text: str) -> tuple[str, ...]:
    """`text` cut behind every "." that ends a word; joined they are the text again."""
    return tuple(re.split(r"(?<=\.)(?=\s)", text.strip()))


def take(sentences: Sequence[str], count: int) -> list[str]:
    """The first `count` sentences; a text that is shorter starts again behind a space."""
    start, *rest = sentences
    again = (f" {start}", *rest)
    return list(itertools.islice(itertools.chain(sentences, itertools.cycle(again)), count))


def hide(sentences: Sequence[str], needles: Iterable[tuple[float, str]]) -> str:
    """The text with needles in it, each behind the last sentence that ends before its depth.

    needles: (depth, sentence); depth 0 is the start of the text, 1 its end. Needles in the same
    place keep their order.
    """
    ends = list(itertools.accumulate(map(len, sentences)))
    total = ends[-1] if ends else 0
    before: dict[int, list[str]] = {}
    for depth, needle in needles:
        before.setdefault(bisect.bisect_right(ends, depth * total), []).append(f" {needle}")
    pieces: list[str] = []
    for index in range(len(sentences) + 1):
        pieces += before.get(index, ())
        pieces += sentences[index : index + 1]
        if index == 0:  # the first sentence has no space of its own
            pieces[-1:] = [f" {piece.lstrip()}" for piece in pieces[-1:]]
    return "".join(pieces).strip()
