"""Patterns of equal cost on a prompt, so that they are compared by what they keep alone.

The paper's algorithm 1 changes the sizes of a candidate in steps until its cost is that of the
target. Here the sizes form a ladder, cheapest first, and bisection climbs it, for all heads of a
layer at once:

    two sizes     the larger one changes in steps from where it starts, up to the prompt's length
                  and down to its least; below that the other one shrinks to its least
    block_sparse  one block at a time
    dense         a single rung

A head stops at the first rung it meets within the tolerance of the target. If there is none, the
step is too coarse: it takes the rung that costs less, whose next one costs more. What costs more
even on the lowest rung stays there, and `fits` says so. Bisection takes the costs for growing with
the size; where they do not quite, the result still has the properties above.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from minference_ext.methods import Layer
from minference_ext.ops import plan_stats, sparse_attention
from minference_ext.patterns import HeadPattern

from .settings import CostUnit

#: The least sizes of a ladder, by kind: what an estimation keeps anyway, or a window of one tile.
_LEAST: dict[str, tuple[int, int]] = {
    "vertical_slash": (30, 100),
    "a_shape": (0, 64),
    "tri_shape": (0, 64),
}
_TIMED_RUNS = 3

#: The cost of one pattern per head of a layer.
Cost: TypeAlias = Callable[[Sequence[HeadPattern]], list[float]]


@dataclass(frozen=True)
class Equalised:
    """A pattern brought to a cost."""

    pattern: HeadPattern
    cost: float
    fits: bool  #: False: even the least sizes cost more than the target and its tolerance


def size_ladder(pattern: HeadPattern, length: int, step: int) -> list[HeadPattern]:
    """What `pattern` may become on a prompt of `length` tokens, cheapest first; sizes beyond the
    prompt are cut to it.

    Raises:
        ValueError: a kind that needs lists of indices.
    """
    if pattern.kind == "dense":
        return [pattern]
    if pattern.kind == "block_sparse":
        return [HeadPattern.block_sparse(top_k + 1) for top_k in range(math.ceil(length / 64))]
    if pattern.kind not in _LEAST:
        raise ValueError(f"pattern is of kind {pattern.kind}, whose lines or blocks are given")
    changed = 0 if pattern.sizes[0] > pattern.sizes[1] else 1
    other = 1 - changed
    sizes = [min(size, length) for size in pattern.sizes[:2]]
    least = [min(size, length) for size in _LEAST[pattern.kind]]
    low = _sizes(least[other], sizes[other], sizes[other], step)
    high = _sizes(least[changed], sizes[changed], length, step)
    rungs = [(high[0], size) for size in low[:-1]] + [(size, low[-1]) for size in high]
    return [
        HeadPattern(pattern.kind, (*((a, b) if changed == 0 else (b, a)), *pattern.sizes[2:]))
        for a, b in rungs
    ]


def _sizes(least: int, start: int, most: int, step: int) -> list[int]:
    """start + n * step within least .. most, and these two, ascending; least is at most start."""
    least = min(least, start)
    steps = range(start - (start - least) // step * step, most + 1, step)
    return sorted({least, *steps, most})


def equalise(
    layer: Layer,
    patterns: Sequence[HeadPattern],
    targets: Sequence[float],
    *,
    cost: Cost | None = None,
    step: int = 50,
    tolerance: float = 0.02,
) -> list[Equalised]:
    """Brings the pattern of every head of a layer to a cost, by the rule above.

    Args:
        layer: one whole prompt.
        patterns: one per query head, without lists of indices.
        targets: costs, one per query head, in the unit of `cost`.
        cost: None: `tile_cost(layer)`.
        step: by how many lines or tokens a size changes.
        tolerance: relative to the target.

    Raises:
        ValueError: as `size_ladder`.
        RuntimeError: as `minference_ext.plan_stats`.
    """
    cost = tile_cost(layer) if cost is None else cost
    length = layer.k.shape[2]
    ladders = {pattern: size_ladder(pattern, length, step) for pattern in set(patterns)}
    searches = [
        _Bisection(ladders[pattern], pattern, target, tolerance)
        for pattern, target in zip(patterns, targets, strict=True)
    ]
    while not all(search.is_done for search in searches):
        costs = cost([search.pattern for search in searches])
        for search, found in zip(searches, costs, strict=True):
            search.learn(found)
    return [search.result for search in searches]


class _Bisection:
    """The climb of one head: every rung up to `_low` is too cheap, from `_high` on too dear."""

    def __init__(
        self, ladder: list[HeadPattern], start: HeadPattern, target: float, tolerance: float
    ) -> None:
        self._ladder = ladder
        self._target = target
        self._slack = tolerance * target
        self._low, self._high = -1, len(ladder)
        self._rung = ladder.index(start) if start in ladder else len(ladder) // 2
        self._costs: dict[int, float] = {}
        self.is_done = False

    @property
    def pattern(self) -> HeadPattern:
        """The rung whose cost is asked for; once done, the result."""
        return self._ladder[self._rung]

    @property
    def result(self) -> Equalised:
        cost = self._costs[self._rung]
        return Equalised(self.pattern, cost, cost <= self._target + self._slack)

    def learn(self, cost: float) -> None:
        """Takes the cost of `pattern` and moves on."""
        if self.is_done:
            return
        self._costs[self._rung] = cost
        if abs(cost - self._target) <= self._slack:
            self.is_done = True
            return
        if cost < self._target:
            self._low = self._rung
        else:
            self._high = self._rung
        if self._high - self._low == 1:
            self.is_done = True
            self._rung = max(self._low, 0)
        else:
            self._rung = (self._low + self._high) // 2


def cost_of(unit: CostUnit, layer: Layer) -> Cost:
    return tile_cost(layer) if unit == "tiles" else time_cost(layer)


def tile_cost(layer: Layer) -> Cost:
    """(query, key) pairs that the kernels multiply, whole tiles, without dense fallback."""

    def pairs(patterns: Sequence[HeadPattern]) -> list[float]:
        stats = plan_stats(
            layer.q, layer.k, patterns, dense_fallback=False, softmax_scale=layer.softmax_scale
        )
        return [float(number) for number in stats.computed_pairs[0].tolist()]

    return pairs


def time_cost(layer: Layer) -> Cost:
    """Seconds of each head alone: the median of three runs, estimation and plan included."""
    known: dict[tuple[int, HeadPattern], float] = {}

    def seconds(patterns: Sequence[HeadPattern]) -> list[float]:
        for head, pattern in enumerate(patterns):
            if (head, pattern) not in known:
                alone = layer.heads([head])
                known[head, pattern] = statistics.median(
                    _seconds(alone, pattern) for _ in range(_TIMED_RUNS)
                )
        return [known[head, pattern] for head, pattern in enumerate(patterns)]

    return seconds


def _seconds(layer: Layer, pattern: HeadPattern) -> float:
    _wait(layer)  # for what other calls have enqueued
    begin = time.perf_counter()
    sparse_attention(
        layer.q,
        layer.k,
        layer.v,
        [pattern],
        dense_fallback=False,
        softmax_scale=layer.softmax_scale,
    )
    _wait(layer)
    return time.perf_counter() - begin


def _wait(layer: Layer) -> None:
    if layer.q.is_cuda:
        torch.cuda.synchronize(layer.q.device)
