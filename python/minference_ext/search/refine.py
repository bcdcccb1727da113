"""Larger sizes for the heads that lose too much probability, as Qwen2.5-1M does (arXiv 2501.15383).

Patterns found on prompts of some ten thousand tokens can be too small at a million. For every head
whose attention recall on a prompt is below a threshold, columns and diagonals are added in rounds
until it is not, or until either number is that of the prompt's tokens: the head is dense then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minference_ext.methods import Layer, LayerIndex
from minference_ext.patterns import HeadPattern

from .measure import Dense, Measured, measure


@dataclass(frozen=True)
class Refined:
    pattern: HeadPattern
    before: Measured  #: of the pattern it came with
    after: Measured


def refine(
    layer: Layer,
    dense: Dense,
    patterns: Sequence[HeadPattern],
    starts: Sequence[HeadPattern],
    recall: float,
    step: tuple[int, int],
) -> list[Refined]:
    """One entry per query head.

    Args:
        patterns: the pattern of each head.
        starts: the vertical_slash that takes the place of a head's pattern of another kind if that
            misses the recall.
        recall: what every head shall reach, in (0, 1).
        step: columns and diagonals per round.
    """
    before = measure(layer, dense, _index(patterns))
    now = list(patterns)
    after = list(before)
    below = [head for head, one in enumerate(before) if one.recall < recall]
    while below:
        for head in below:
            now[head] = _larger(now[head], starts[head], step, layer.k.shape[2])
        measured = measure(
            layer.heads(below), dense.heads(below), _index([now[head] for head in below])
        )
        for head, one in zip(below, measured, strict=True):
            after[head] = one
        below = [
            head
            for head in below
            if after[head].recall < recall and max(now[head].sizes) < layer.k.shape[2]
        ]
    return [Refined(*of_head) for of_head in zip(now, before, after, strict=True)]


def _larger(
    pattern: HeadPattern, start: HeadPattern, step: tuple[int, int], length: int
) -> HeadPattern:
    if pattern.kind != "vertical_slash":
        return start
    columns, diagonals = pattern.sizes
    return HeadPattern.vertical_slash(
        min(columns + step[0], length), min(diagonals + step[1], length)
    )


def _index(patterns: Sequence[HeadPattern]) -> LayerIndex:
    return LayerIndex(tuple(patterns), dense_fallback=False)
