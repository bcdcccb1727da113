"""What the subjects of minference bench share: lengths, times as text, crossovers, curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from minference_ext.benchmark.attention import DENSE, SDPA
from minference_ext.benchmark.crossover import Measured
from minference_ext.command_line import at_least
from minference_ext.plots.times import Curve


class TimedRow(Measured, Protocol):
    """A row with its figures."""

    @property
    def median_seconds(self) -> float: ...

    @property
    def speedup(self) -> float: ...


def lengths_of(shortest: int) -> Callable[[str], list[int]]:
    """The type of --lengths: ascending, without repetition."""

    def lengths(text: str) -> list[int]:
        return sorted({at_least(shortest)(item) for item in text.split(",")})

    return lengths


def three_digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def seconds_text(value: float) -> str:
    """Four decimals, fewer for long times."""
    decimals = 4 if value < 10 else 2 if value < 1000 else 0
    return f"{value:.{decimals}f}"


def crossovers_text(points: Mapping[str, float | None], shortest: int, than: str) -> str:
    """A line per method.

    shortest: of the lengths, tokens.
    than: what it is compared with.
    """
    lines = []
    for method, point in points.items():
        if point is None:
            where = f"not faster than {than} at the longest length"
        elif point <= shortest:
            where = f"faster than {than} at all lengths"
        else:
            where = f"faster than {than} from {point:.0f} tokens on"
        lines.append(f"{method}: {where}")
    return "\n".join(lines)


def curves(rows: Sequence[TimedRow], points: Mapping[str, float | None]) -> list[Curve]:
    """One per method, SDPA first."""
    names = {SDPA: "PyTorch SDPA", "dense": "dense (ours)"}
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        of = [row for row in rows if row.method == method]
        found.append(
            Curve(
                names.get(method, method),
                [row.length for row in of],
                [row.median_seconds for row in of],
                [row.speedup for row in of],
                method in DENSE,
                points.get(method),
            )
        )
    return found
