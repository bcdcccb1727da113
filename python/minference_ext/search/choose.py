"""Which candidate a head gets: the least error, and among equals the kind that fits the head.

Candidates are equal where their errors are closer than `rounding`, or than 5 % of the least one:
another prompt would move them by more. Among equals

* a_shape wins, which needs no estimation, unless columns alone or diagonals alone hold the
  probability of the last queries in at most half as many lines as first columns and nearest
  diagonals together: then the head is made of lines, and far ones will be kept on longer prompts;
* of several vertical_slash the one with most diagonals wins if diagonals alone need fewer lines
  than columns alone (a "slash" head), else the one with most columns;
* block_sparse wins only where nothing equals it: its blocks hold for one row block each, and heads
  that need them are rare.

A candidate that costs more than the budget on its least sizes is out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minference_ext.patterns import HeadPattern

from .measure import LINES_HOLD, Lines

_EQUAL = 0.05  # relative to the least error


@dataclass(frozen=True)
class Candidate:
    """A candidate of one head, on one prompt or on the mean of several."""

    pattern: HeadPattern
    error: float
    recall: float
    computed_share: float
    is_within_budget: bool = True


def choose(candidates: Sequence[Candidate], lines: Lines, rounding: float) -> tuple[Candidate, str]:
    """The winner and why it wins.

    Args:
        candidates: one of them a_shape within the budget.
        rounding: as `rounding_error` gives it.
    """
    within = [candidate for candidate in candidates if candidate.is_within_budget]
    least = min(candidate.error for candidate in within)
    slack = max(rounding, _EQUAL * least)
    equals = [candidate for candidate in within if candidate.error <= least + slack]
    if len(equals) == 1:
        return equals[0], "least error"
    within_what = (
        "rounding" if rounding >= _EQUAL * least else f"{100 * _EQUAL:.0f} % of the least error"
    )
    by_kind = {
        kind: [candidate for candidate in equals if candidate.pattern.kind == kind]
        for kind in ("a_shape", "vertical_slash", "block_sparse")
    }
    vertical_slash = by_kind["vertical_slash"]
    is_made_of_lines = 2 * min(lines.columns, lines.diagonals) <= lines.a_shape
    if vertical_slash and (is_made_of_lines or not by_kind["a_shape"]):
        is_slash = lines.diagonals < lines.columns
        winner = max(
            vertical_slash,
            key=lambda candidate: (candidate.pattern.sizes[is_slash], -candidate.error),
        )
        return winner, _lines_text(lines, is_slash)
    if by_kind["a_shape"]:
        return by_kind["a_shape"][0], f"ties within {within_what}; a_shape needs no estimation"
    return min(by_kind["block_sparse"], key=lambda candidate: candidate.error), "least error"


def _lines_text(lines: Lines, is_slash: bool) -> str:
    count = lines.diagonals if is_slash else lines.columns
    noun = "diagonal" if is_slash else "column"
    verb = "holds" if count == 1 else "hold"
    plural = "" if count == 1 else "s"
    name = "slash" if is_slash else "vertical"
    return f"{name}: {count:.4g} {noun}{plural} {verb} {100 * LINES_HOLD:.0f} %"
