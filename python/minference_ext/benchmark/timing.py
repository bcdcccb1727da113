"""The only clock of the benchmarks.

Contenders are timed in turns, one run of each per round, so that whatever else the machine does
meets all of them alike. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Seconds of every run, by contender, in the order of the rounds."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> tuple[float, float]:
        """10th and 90th percentile."""
        return spread(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> float:
        """How many times longer `slower` takes than `faster`."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return statistics.median(a / b for a, b in pairs)


def spread(seconds: Sequence[float]) -> tuple[float, float]:
    """10th and 90th percentile."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], ordered[round(0.9 * last)]


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
    return in_turns(contenders, rounds=rounds, repeats=repeats)


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: Mapping[str, int] | None = None,
    prepare: Callable[[str], object] | None = None,
) -> Timings:
    """Times contenders that have run before, one turn of each per round.

    repeats: runs per turn; None: one of each. The time is that of one run.
    prepare: called with a contender's name before each of its turns, outside of the clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            count = 1 if repeats is None else repeats[name]
            if prepare is not None:
                prepare(name)
            start = time.perf_counter()
            for _ in range(count):
                run()
            seconds[name].append((time.perf_counter() - start) / count)
    return Timings(seconds)
