"""Which needles a method finds: depth in the prompt by length of the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .canvas import BLUE, ORANGE, Target, canvas, every, shortened, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 4  # of panels
_MIDDLE, _UNKNOWN = "#F3EFE6", "#BBBBBB"


@dataclass(frozen=True)
class Retrieval:
    """What one method found."""

    method: str
    description: str  #: its pattern
    lengths: Sequence[int]  #: tokens, ascending
    depths: Sequence[float]  #: ascending, 0: start of the prompt, 1: its end
    found: Sequence[Sequence[float]]  #: [lengths][depths]: 0 .. 1, or NaN for what was not asked

    @property
    def scores(self) -> list[float]:
        """All but NaN."""
        return [float(value) for row in self.found for value in row if not math.isnan(value)]

    @property
    def text(self) -> str:
        """How many of how many, or the mean."""
        scores = self.scores
        if not scores:
            return "nothing asked"
        if set(scores) <= {0.0, 1.0}:
            return f"{sum(scores):.0f}/{len(scores)}"
        return f"{sum(scores) / len(scores):.1%}"


def draw_retrieval(path: Target, results: Sequence[Retrieval], title: str) -> None:
    """One panel per method; all have the same lengths and depths.

    Two colours if every score is 0 or 1, else a scale between them.
    """
    rows = math.ceil(len(results) / _MOST_COLUMNS)
    columns = math.ceil(len(results) / rows)
    scores = [score for result in results for score in result.scores]
    with canvas(path, 9.0 if columns > 1 else 5.6, 4.1 if rows == 1 else 2.9 * rows + 1) as figure:
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, result in zip(panels.flat, results, strict=False):
            _draw_panel(axes, result, columns)
        for axes in panels.flat[len(results) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("depth of the needle")
        num_cells = sum(len(result.lengths) * len(result.depths) for result in results)
        _add_legend(figure, panels, set(scores) <= {0.0, 1.0}, len(scores) < num_cells)


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("found", [ORANGE, _MIDDLE, BLUE])
    return scale.with_extremes(bad=_UNKNOWN)


def _draw_panel(axes: Axes, result: Retrieval, columns: int) -> None:
    cells = [list(map(float, column)) for column in zip(*result.found, strict=True)]
    axes.imshow(cells, cmap=_colours(), vmin=0, vmax=1, aspect="auto")  # depth by length
    lengths, depths = len(result.lengths), len(result.depths)
    length_step, depth_step = every(lengths, 32 // columns), every(depths, 12)
    axes.set_xticks(
        range(0, lengths, length_step), [tokens(length) for length in result.lengths[::length_step]]
    )
    axes.set_yticks(
        range(0, depths, depth_step), [f"{depth:.0%}" for depth in result.depths[::depth_step]]
    )
    axes.set_xticks([column - 0.5 for column in range(1, lengths)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, depths)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if max(lengths, depths) <= 16 else 0.5)
    axes.tick_params(which="both", length=0, labelsize=7.5)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("prompt, tokens")
    width = {1: 70, 2: 62, 3: 42}.get(columns, 32)  # characters of a line
    name = shortened(result.method, width)
    separator = ": " if len(f"{name}: {result.text}") <= width else "\n"
    text = f"{name}{separator}{result.text}"
    if result.description:
        text += f"\n{shortened(result.description, width)}"
    axes.set_title(text, fontsize=8.5)


def _add_legend(figure: Figure, panels: Any, is_binary: bool, has_unknown: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    handles = [Patch(color=_UNKNOWN, label="not asked")] if has_unknown else []
    if is_binary:
        ends = [Patch(color=BLUE, label="found"), Patch(color=ORANGE, label="missed")]
        handles = [*ends, *handles]
    else:
        figure.colorbar(
            ScalarMappable(cmap=_colours()),
            ax=list(panels.flat),
            location="bottom",
            fraction=0.04,
            aspect=50,
            label="score, mean of the samples",
        )
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
