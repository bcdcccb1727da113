"""What a search's patterns compute, and what they keep, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .canvas import BLUE, Target, add_title, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_density(path: Target, heads: Sequence[tuple[int, float, float]], title: str) -> None:
    """Two panels, each with the mean over a layer's heads and the range of them.

    heads: layer, computed share of the pairs, recall.
    """
    with canvas(path, 9.0, 3.9) as figure:
        add_title(figure, title)
        left, right = figure.subplots(1, 2, sharex=True)
        _draw_panel(left, [(layer, share) for layer, share, _ in heads])
        left.set_title("computed: pairs multiplied / pairs of dense attention")
        _draw_panel(right, [(layer, recall) for layer, _, recall in heads])
        right.set_title("recall: attention that the patterns keep")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5
        )


def _draw_panel(axes: Axes, values: Sequence[tuple[int, float]]) -> None:
    """values: layer and value of each head."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    by_layer: dict[int, list[float]] = {}
    for layer, value in sorted(values):
        by_layer.setdefault(layer, []).append(value)
    layers = list(by_layer)
    means = [sum(of) / len(of) for of in by_layer.values()]
    lowest, highest = map(min, by_layer.values()), map(max, by_layer.values())
    axes.vlines(
        layers,
        list(lowest),
        list(highest),
        color=BLUE,
        alpha=0.3,
        linewidth=max(1.5, min(9.0, 200 / len(layers))),
        label="from the least of the heads to the most",
    )
    size = 4 if len(layers) <= 40 else 2.5
    axes.plot(layers, means, color=BLUE, marker="o", markersize=size, label="mean of the heads")
    axes.set_xlabel("layer")
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_ylim(0, max(1.05, 1.05 * max(max(of) for of in by_layer.values())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
