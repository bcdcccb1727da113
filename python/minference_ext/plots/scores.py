"""How well methods do: a table of scores, coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .canvas import BLUE, INK, ORANGE, Target, add_title, canvas, shortened

_MIDDLE, _UNKNOWN = "#F3EFE6", "#E4E4E4"
#: Share of the best score from which down a cell has the full colour of a loss.
_LOST = 0.5
_WIDE = 11  # characters of a name that fit above a column of 0.85 inches


@dataclass(frozen=True)
class Scores:
    """Of all methods, at one task or at one length."""

    name: str
    values: Sequence[float]  #: by method; NaN where there is none
    is_high_better: bool = True

    def relative(self) -> list[float]:
        """Each as a share of the best, 1 for the best; NaN where there is none."""
        known = [value for value in self.values if math.isfinite(value)]
        if not known:
            return [math.nan] * len(self.values)
        best = max(known) if self.is_high_better else min(known)
        return [_share(value, best, self.is_high_better) for value in self.values]


def _share(value: float, best: float, is_high_better: bool) -> float:
    if math.isnan(value):
        return math.nan
    over, under = (value, best) if is_high_better else (best, value)
    if over == under:
        return 1.0
    return max(0.0, over / under) if under > 0 and math.isfinite(under) else 0.0


def score_text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def draw_scores(path: Target, methods: Sequence[str], scores: Sequence[Scores], title: str) -> None:
    """A row per method, a column per task or length. A cell's colour says how close it comes to
    the best score of its column."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import FuncFormatter

    scale = LinearSegmentedColormap.from_list("share", [ORANGE, _MIDDLE, BLUE])
    colours = scale.with_extremes(bad=_UNKNOWN)
    # Black text must stay readable, so the colours are those of a tinted glass.
    alpha, norm = 0.62, Normalize(_LOST, 1.0)
    names = [shortened(of.name, 40) for of in scores]
    # A metric in parentheses goes below. What is too wide still stands at an angle.
    parts = [part for name in names for part in name.split(" (")]
    is_turned = max(map(len, parts)) > _WIDE and len(names) > 1
    if not is_turned:
        names = [name.replace(" (", "\n(") for name in names]
    width = 0.065 * max(len(shortened(method, 50)) for method in methods) + 0.4
    width += max(3.0, 0.85 * len(names)) + (0.05 * len(names[-1]) if is_turned else 0)
    height = 0.3 * len(methods) + (0.035 * max(map(len, names)) if is_turned else 0) + 1.5
    with canvas(path, max(5.0, width), height) as figure:
        axes = figure.subplots()
        cells = list(zip(*(of.relative() for of in scores), strict=True))
        axes.imshow(cells, cmap=colours, norm=norm, alpha=alpha, aspect="auto")
        for column, of in enumerate(scores):
            for row, value in enumerate(of.values):
                text = score_text(value)
                axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=INK)
        axes.xaxis.tick_top()
        axes.set_xticks(
            range(len(names)),
            names,
            rotation=30 if is_turned else 0,
            ha="left" if is_turned else "center",
            rotation_mode="anchor",
            fontsize=8.5,
        )
        axes.set_yticks(
            range(len(methods)), [shortened(method, 50) for method in methods], fontsize=8.5
        )
        axes.set_xticks([column - 0.5 for column in range(1, len(names))], minor=True)
        axes.set_yticks([row - 0.5 for row in range(1, len(methods))], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        add_title(figure, title)
        bar = figure.colorbar(
            ScalarMappable(norm, colours),
            ax=axes,
            alpha=alpha,
            location="bottom",
            fraction=0.12 / height,
            aspect=40,
            pad=0.12 / height,
            format=FuncFormatter(lambda share, _: f"{share:.0%}"),
            extend="min",
        )
        bar.set_label("share of the best score of a column", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
