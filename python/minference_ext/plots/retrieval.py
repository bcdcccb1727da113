"""Which needles a method finds: depth in the prompt by length of the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .canvas import (
    BLUE,
    ORANGE,
    Target,
    add_title,
    canvas,
    every,
    in_lines,
    percent,
    shortened,
    tokens,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 4  # of panels
_FEW_LENGTHS = 3
_MIDDLE, _UNKNOWN = "#F3EFE6", "#BBBBBB"


@dataclass(frozen=True)
class Retrieval:
    """What one method found."""

    method: str
    description: str  #: its pattern, or ""
    lengths: Sequence[int]  #: tokens, ascending
    depths: Sequence[float]  #: ascending, 0: start of the prompt, 1: its end
    found: Sequence[Sequence[float]]  #: [lengths][depths]: 0 .. 1, or NaN for what was not asked
    is_mean: bool = False  #: whether found has means of several answers


def draw_retrieval(path: Target, results: Sequence[Retrieval], title: str) -> None:
    """One panel per method, of depths by lengths; of few lengths one per length, of methods by
    depths. All have the same lengths and depths.

    Two colours if every score is 0 or 1, else a scale between them.
    """
    if len(results[0].lengths) <= _FEW_LENGTHS:
        _draw_by_length(path, results, title)
    else:
        _draw_by_method(path, results, title)


def _text(results: Sequence[Retrieval], found: Sequence[Sequence[float]]) -> str:
    """How many of how many, or the mean where some results are no single answers."""
    scores = _known(found)
    if not scores:
        return "-"
    if any(result.is_mean for result in results) or not _is_binary(results):
        return percent(sum(scores) / len(scores))
    return f"{sum(scores):.0f}/{len(scores)}"


def _known(found: Sequence[Sequence[float]]) -> list[float]:
    """All but NaN."""
    return [float(value) for row in found for value in row if not math.isnan(value)]


def _is_binary(results: Sequence[Retrieval]) -> bool:
    return all(score in (0.0, 1.0) for result in results for score in _known(result.found))


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("found", [ORANGE, _MIDDLE, BLUE])
    return scale.with_extremes(bad=_UNKNOWN)


def _draw_cells(axes: Axes, cells: Sequence[Sequence[float]]) -> None:
    """Rows and columns of scores, with lines between them."""
    rows, columns = len(cells), len(cells[0])
    axes.imshow(
        [list(map(float, row)) for row in cells], cmap=_colours(), vmin=0, vmax=1, aspect="auto"
    )
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if max(rows, columns) <= 20 else 0.5)
    axes.tick_params(which="both", length=0, labelsize=7.5)
    axes.spines[:].set_visible(False)


# ---- Many lengths --------------------------------------------------------------------------------


def _draw_by_method(path: Target, results: Sequence[Retrieval], title: str) -> None:
    rows = math.ceil(len(results) / _MOST_COLUMNS)
    columns = math.ceil(len(results) / rows)
    with canvas(path, 9.0 if columns > 1 else 5.6, 4.1 if rows == 1 else 2.9 * rows + 1) as figure:
        add_title(figure, title)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        texts = _texts(results, columns)
        for axes, result, text in zip(panels.flat, results, texts, strict=False):
            _draw_panel(axes, result, columns)
            axes.set_title(text, fontsize=8.5)
        for axes in panels.flat[len(results) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("depth of the needle")
        _add_legend(figure, panels, results)


def _draw_panel(axes: Axes, result: Retrieval, columns: int) -> None:
    _draw_cells(axes, list(zip(*result.found, strict=True)))  # depth by length
    labels = [tokens(length) for length in result.lengths]
    length_step = every(len(labels), 128 // (columns * (max(map(len, labels)) + 1)))
    depth_step = every(len(result.depths), 12)
    axes.set_xticks(range(0, len(labels), length_step), labels[::length_step])
    axes.set_yticks(
        range(0, len(result.depths), depth_step),
        [f"{depth:.0%}" for depth in result.depths[::depth_step]],
    )
    axes.set_xlabel("prompt, tokens")


def _texts(results: Sequence[Retrieval], columns: int) -> list[str]:
    """Above each panel its method and how much that finds; all in one line, or all in more."""
    width = {1: 70, 2: 60, 3: 40}.get(columns, 30)  # characters of a line
    counts = [_text(results, result.found) for result in results]
    texts = [
        f"{shortened(of.method, 200)}: {count}" for of, count in zip(results, counts, strict=True)
    ]
    if max(map(len, texts)) > width:
        texts = [
            f"{in_lines(of.method, width)}\n{count}"
            for of, count in zip(results, counts, strict=True)
        ]
    return [
        f"{text}\n{shortened(result.description, width)}" if result.description else text
        for text, result in zip(texts, results, strict=True)
    ]


# ---- Few lengths ---------------------------------------------------------------------------------


def _draw_by_length(path: Target, results: Sequence[Retrieval], title: str) -> None:
    """Beside each row how much its method finds at that length."""
    lengths, depths = results[0].lengths, results[0].depths
    row = 0.38 if any(result.description for result in results) else 0.27  # inches
    with canvas(path, 9.0, row * len(results) + 1.9) as figure:
        add_title(figure, title)
        panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)
        for place, (axes, length) in enumerate(zip(panels.flat, lengths, strict=True)):
            _draw_cells(axes, [result.found[place] for result in results])
            step = every(len(depths), 13 // len(lengths))
            axes.set_xticks(
                range(0, len(depths), step), [f"{depth:.0%}" for depth in depths[::step]]
            )
            axes.set_xlabel("depth of the needle")
            axes.set_title(f"{tokens(length)} tokens")
            for row, result in enumerate(results):
                axes.annotate(
                    _text(results, [result.found[place]]),
                    (1, row),
                    xytext=(4, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        panels[0, 0].set_yticks(
            range(len(results)), [_row_text(result) for result in results], fontsize=8
        )
        _add_legend(figure, panels, results)


def _row_text(result: Retrieval) -> str:
    name = shortened(result.method, 44)
    return f"{name}\n{shortened(result.description, 44)}" if result.description else name


def _add_legend(figure: Figure, panels: Any, results: Sequence[Retrieval]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    num_known = sum(len(_known(result.found)) for result in results)
    num_cells = sum(len(result.lengths) * len(result.depths) for result in results)
    handles = [Patch(color=_UNKNOWN, label="not asked")] if num_known < num_cells else []
    if _is_binary(results):
        ends = [Patch(color=BLUE, label="found"), Patch(color=ORANGE, label="missed")]
        handles = [*ends, *handles]
    else:
        figure.colorbar(
            ScalarMappable(cmap=_colours()),
            ax=panels,
            location="bottom",
            fraction=0.04,
            aspect=50,
            label="score",
        )
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
