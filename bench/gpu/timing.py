"""Times work on a GPU by CUDA events, contenders in turns, each for the same total time.

minference_ext.benchmark.timing is the clock of work that is done when a call returns; work on a GPU
is not. Between runs the L2 cache is flushed by writing more than it holds. That also keeps the
device busy while the host launches, so the time of a launch does not show in a short run.

On "cpu" the host's clock serves: for trying a benchmark where there is no GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

LEAST_RUNS, MOST_RUNS = 5, 100
_ROUNDS = 5
_FLUSHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Times:
    milliseconds: list[float]  #: of each run

    def row(self) -> dict[str, object]:
        ordered = sorted(self.milliseconds)
        last = len(ordered) - 1
        return {
            "ms": round(statistics.median(ordered), 5),
            "p10": round(ordered[round(0.1 * last)], 5),
            "p90": round(ordered[round(0.9 * last)], 5),
            "runs": len(ordered),
        }


class Failed(str):
    """Why a contender has no times."""


class Clock:
    def __init__(self, device: torch.device, seconds: float, flush: bool) -> None:
        """`seconds`: of all runs of a contender together; one run is made however long it takes."""
        self._device, self._seconds = device, seconds
        self._flushed = None
        if flush and device.type == "cuda":
            self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)

    def _runs(self, run: Callable[[], object], count: int) -> list[float]:
        """Milliseconds of each of `count` runs."""
        if self._device.type != "cuda":
            times = []
            for _ in range(count):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
            return times
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(count)
        ]
        for begin, end in events:
            if self._flushed is not None:
                self._flushed.zero_()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def compare(self, contenders: Mapping[str, Callable[[], object]]) -> dict[str, Times | Failed]:
        """Times in rounds. A contender that raises is out; the others go on."""
        result: dict[str, Times | Failed] = {}
        runs_per_round: dict[str, int] = {}
        for name, run in contenders.items():
            try:
                self._runs(run, 1)  # compiles, chooses algorithms
                once = self._runs(run, 1)
            except Exception as error:  # whatever a library or its compiler raises
                lines = str(error).strip().splitlines()
                result[name] = Failed(f"{type(error).__name__}: {lines[0] if lines else ''}"[:200])
                continue
            if once[0] > self._seconds * 1e3:
                result[name] = Times(once)  # runs of seconds are not repeated
                continue
            wanted = round(self._seconds * 1e3 / max(once[0], 1e-3))
            wanted = min(max(wanted, LEAST_RUNS), MOST_RUNS)
            runs_per_round[name] = max(1, round(wanted / _ROUNDS))
        measured: dict[str, list[float]] = {name: [] for name in runs_per_round}
        for _ in range(_ROUNDS):
            for name, count in runs_per_round.items():
                measured[name] += self._runs(contenders[name], count)
        result.update({name: Times(times) for name, times in measured.items()})
        return result
