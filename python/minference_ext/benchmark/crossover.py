"""From which length on a method is faster than another."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

from .timing import Timings

PAYS = 1.05  #: speed-up from which a method counts as faster: less can be noise


def crossover(lengths: Sequence[int], speedups: Sequence[float]) -> float | None:
    """The length from which on the speed-up stays at PAYS or more.

    Between two lengths that were measured it is interpolated, logarithms of both linearly.

    Args:
        lengths: tokens, ascending.
        speedups: time of the other method / time of this one, at each length.

    Returns:
        Tokens; lengths[0] if it pays everywhere, None if it does not at the longest length.
    """
    if len(lengths) != len(speedups) or not lengths:
        raise ValueError(
            f"speedups has {len(speedups)} entries; it must have one per length ({len(lengths)})"
        )
    first = len(lengths)
    while first > 0 and speedups[first - 1] >= PAYS:
        first -= 1
    if first == len(lengths):
        return None
    if first == 0:
        return float(lengths[0])
    below, above = math.log(speedups[first - 1]), math.log(speedups[first])
    share = (math.log(PAYS) - below) / (above - below)
    left, right = math.log(lengths[first - 1]), math.log(lengths[first])
    return math.exp(left + share * (right - left))


class Measured(Protocol):
    """A row of a benchmark: one method at one length."""

    @property
    def length(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def seconds(self) -> list[float]: ...


def crossovers(rows: Sequence[Measured], dense: Collection[str]) -> dict[str, float | None]:
    """By method: tokens from which on it is faster than every dense attention measured.

    Args:
        rows: all methods at all lengths, lengths ascending, rounds in the same order.
        dense: the methods to be faster than; those that rows lack are left out.
    """
    by_length: dict[int, Timings] = {}
    for row in rows:
        by_length.setdefault(row.length, Timings({})).seconds[row.method] = row.seconds
    methods = list(dict.fromkeys(row.method for row in rows))
    baselines = [method for method in methods if method in dense]
    return {
        method: crossover(
            list(by_length),
            [
                min(times.ratio(other, method) for other in baselines)
                for times in by_length.values()
            ],
        )
        for method in methods
        if method not in dense
    }
