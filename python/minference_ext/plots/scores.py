"""How well methods do: a table of scores, coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .canvas import BLUE, INK, ORANGE, Target, canvas, shortened

_MIDDLE, _UNKNOWN = "#F3EFE6", "#E4E4E4"
#: Share of the row's best score from which down a cell has the full colour of a loss.
_LOST = 0.5


@dataclass(frozen=True)
class ScoreRow:
    """Scores of all methods at one task, or at one length."""

    name: str
    values: Sequence[float]  #: by method; NaN where there is none
    is_high_better: bool = True

    def relative(self) -> list[float]:
        """Each as a share of the row's best, 1 for the best; NaN where there is none."""
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


def draw_scores(path: Target, methods: Sequence[str], rows: Sequence[ScoreRow], title: str) -> None:
    """A cell's colour says how close it comes to the best score of its row."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import FuncFormatter

    scale = LinearSegmentedColormap.from_list("share", [ORANGE, _MIDDLE, BLUE])
    colours = scale.with_extremes(bad=_UNKNOWN)
    # Black text must stay readable, so the colours are those of a tinted glass.
    alpha, norm = 0.62, Normalize(_LOST, 1.0)
    width = 2.4 + max(4.0, 0.78 * len(methods))
    with canvas(path, width, 2.6 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        cells = [row.relative() for row in rows]
        axes.imshow(cells, cmap=colours, norm=norm, alpha=alpha, aspect="auto")
        for place, row in enumerate(rows):
            for column, value in enumerate(row.values):
                text = score_text(value)
                axes.text(column, place, text, ha="center", va="center", fontsize=8.5, color=INK)
        axes.set_xticks(
            range(len(methods)),
            [shortened(method, 40) for method in methods],
            rotation=30 if len(methods) > 1 else 0,
            ha="right" if len(methods) > 1 else "center",
            rotation_mode="anchor",
            fontsize=8.5,
        )
        axes.set_yticks(range(len(rows)), [shortened(row.name, 40) for row in rows], fontsize=8.5)
        axes.set_xticks([column - 0.5 for column in range(1, len(methods))], minor=True)
        axes.set_yticks([place - 0.5 for place in range(1, len(rows))], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(title, fontsize=11)
        figure.colorbar(
            ScalarMappable(norm, colours),
            ax=axes,
            alpha=alpha,
            fraction=0.05,
            label="share of the row's best score",
            format=FuncFormatter(lambda share, _: f"{share:.0%}"),
            extend="min",
        )
