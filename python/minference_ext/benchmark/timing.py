"""The only clock of the benchmarks.

Contenders are timed in turns, one run of each per round, so that whatever else the machine does
meets all of them alike. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Seconds of every run, by contender, in the order of the rounds."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> tuple[float, float]:
        """10th and 90th percentile."""
        ordered = sorted(self.seconds[name])
        last = len(ordered) - 1
        return ordered[round(0.1 * last)], ordered[round(0.9 * last)]

    def ratio(self, slower: str, faster: str) -> float:
        """How many times longer `slower` takes than `faster`."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return statistics.median(a / b for a, b in pairs)


def compare(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, seconds_per_run: float = 0.0
) -> Timings:
    """Times the contenders in turns.

    A run repeats a contender until it takes about `seconds_per_run`, so that the clock's and the
    scheduler's grain does not show; its time is that of one repetition.
    """
    repeats: dict[str, int] = {}
    for name, run in contenders.items():
        run()
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        repeats[name] = max(1, round(seconds_per_run / max(elapsed, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return Timings(seconds)
