"""Results as tables, and as what the picture of needles shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

from minference_ext.command_line import table
from minference_ext.plots.retrieval import Retrieval

from .results import Row

PERCENT = frozenset(("accuracy", "recall", "f1", "rouge"))
PERPLEXITY = "perplexity"
_MISSING = "-"
_MEAN = "mean"


def mean_score(rows: Sequence[Row]) -> float:
    """Of rows with the same metric; of perplexities the geometric mean, that of the mean loss."""
    scores = [row.score for row in rows]
    if rows[0].metric == PERPLEXITY:
        return math.exp(statistics.fmean(map(math.log, scores)))
    return statistics.fmean(scores)


def mean_seconds(rows: Sequence[Row]) -> float:
    """Of a prompt; those that were counted take longer, and go in where there are no others."""
    plain = [row.seconds for row in rows if row.computed_share is None]
    return statistics.fmean(plain or [row.seconds for row in rows])


def summary(rows: Sequence[Row]) -> str:
    """Three tables: scores, computed shares and seconds; methods down, lengths across."""
    lengths = sorted({row.length for row in rows})
    head = ("task", "metric", "method", *map(str, lengths))
    groups: dict[tuple[str, str], dict[str, dict[int, list[Row]]]] = {}
    for row in rows:
        by_method = groups.setdefault((row.task, row.metric), {})
        by_method.setdefault(row.method, {}).setdefault(row.length, []).append(row)

    def text(title: str, cell: Callable[[list[Row]], str], more: Sequence[Sequence[str]]) -> str:
        lines: list[Sequence[str]] = [head]
        for (task, metric), by_method in groups.items():
            names = (task, metric)
            for method, by_length in by_method.items():
                cells = (
                    cell(by_length[length]) if length in by_length else _MISSING
                    for length in lengths
                )
                lines.append((*names, method, *cells))
                names = ("", "")
        return f"{title}\n{table([*lines, *more], num_left=3)}"

    return "\n\n".join(
        (
            text(_score_title(rows), _score_text, _family_means(groups, lengths)),
            text("Computed pairs, % of causal attention:", _share_text, ()),
            text("Seconds per prompt:", lambda of: f"{mean_seconds(of):.3g}", ()),
        )
    )


def _score_title(rows: Sequence[Row]) -> str:
    metrics = {row.metric for row in rows}
    if metrics <= PERCENT:
        return "Mean scores, %:"
    if metrics == {PERPLEXITY}:
        return "Perplexity, lower is better:"
    return f"Mean scores ({', '.join(sorted(PERCENT))} in %; of perplexity, lower is better):"


def _score_text(rows: Sequence[Row]) -> str:
    return _number(rows[0].metric, mean_score(rows))


def _number(metric: str, score: float) -> str:
    return f"{100 * score:.1f}" if metric in PERCENT else f"{score:.4g}"


def _share_text(rows: Sequence[Row]) -> str:
    shares = [row.computed_share for row in rows if row.computed_share is not None]
    return f"{100 * statistics.fmean(shares):.1f}" if shares else _MISSING


def _family_means(
    groups: dict[tuple[str, str], dict[str, dict[int, list[Row]]]], lengths: Sequence[int]
) -> list[tuple[str, ...]]:
    """A line per family and method with the mean of its tasks, where several were run."""
    families: dict[str, list[dict[str, dict[int, list[Row]]]]] = {}
    for (task, metric), by_method in groups.items():
        family, colon, _ = task.partition(":")
        if colon and metric in PERCENT:
            families.setdefault(family, []).append(by_method)
    lines = []
    for family, tasks in families.items():
        if len(tasks) < 2:
            continue
        names = (family, _MEAN)
        for method in dict.fromkeys(method for of_task in tasks for method in of_task):
            cells = []
            for length in lengths:
                of_length = [of_task.get(method, {}).get(length) for of_task in tasks]
                means = [mean_score(rows) for rows in of_length if rows]
                # A mean over other tasks than the next line's could not be compared with it.
                is_whole = len(means) == len(tasks)
                cells.append(f"{100 * statistics.fmean(means):.1f}" if is_whole else _MISSING)
            lines.append((*names, method, *cells))
            names = ("", "")
    return lines


class Asked(Protocol):
    """What a row says of one answer."""

    @property
    def task(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def depth(self) -> float | None: ...
    @property
    def score(self) -> float: ...


def needle_maps(rows: Sequence[Asked], task: str = "niah") -> list[Retrieval]:
    """A map per method of the mean score by length and depth; NaN where nothing was asked."""
    cells: dict[tuple[str, int, float], list[float]] = {}
    for row in rows:
        if row.task == task and row.depth is not None:
            # Depths that differ by rounding are one.
            cell = (row.method, row.length, round(row.depth, 4))
            cells.setdefault(cell, []).append(row.score)
    lengths = sorted({length for _, length, _ in cells})
    depths = sorted({depth for _, _, depth in cells})

    def mean(method: str, length: int, depth: float) -> float:
        scores = cells.get((method, length, depth))
        return statistics.fmean(scores) if scores else math.nan

    return [
        Retrieval(
            method,
            "",
            lengths,
            depths,
            [[mean(method, length, depth) for depth in depths] for length in lengths],
            is_mean=any(len(scores) > 1 for scores in cells.values()),
        )
        for method in dict.fromkeys(method for method, _, _ in cells)
    ]
