"""What the subjects of minference bench share: lengths, times as text, crossovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from minference_ext.command_line import at_least


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
