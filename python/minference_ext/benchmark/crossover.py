"""From which length on a method is faster than another."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
