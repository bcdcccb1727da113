"""How few columns hold the attention, how many of them move, and how close entries lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .canvas import BLUE, GREY, INK, ORANGE, Target, add_title, canvas, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Columns and keys of the paper's figures: 4K of 128K.
PAPER_COLUMNS, PAPER_LENGTH = 4096, 131072


@dataclass(frozen=True)
class Coverage:
    """Share of the attention that a number of columns hold, of each head."""

    length: int  #: tokens of the prompts
    columns: Sequence[int]  #: ascending
    own: Sequence[Sequence[float]]  #: [heads][columns]: the prompt's best columns
    reused: Sequence[Sequence[float]]  #: [heads][columns]: the best columns of another prompt
    distances: Sequence[Sequence[int]]  #: [heads]: neighbouring entries 1, 2, ... keys apart; the
    #: last: farther


def marks(length: int) -> list[int]:
    """The paper's 4K columns where a prompt has that many, and as large a share of this length."""
    same_share = max(1, length * PAPER_COLUMNS // PAPER_LENGTH)
    return sorted({same_share, PAPER_COLUMNS} if length > PAPER_COLUMNS else {same_share})


def draw_observations(path: Target, coverage: Coverage, title: str) -> None:
    """Three panels: attention by number of columns, the same with columns of another prompt, and
    distances between neighbouring entries. Each head counts alike."""
    with canvas(path, 9.0, 3.9) as figure:
        add_title(figure, title)
        left, middle, right = figure.subplots(1, 3)
        _draw_heads(left, coverage, coverage.own, BLUE, "best columns")
        left.set_title("attention on the best columns")
        _draw_heads(middle, coverage, coverage.reused, ORANGE, "columns of another prompt")
        means = _means(coverage.own)
        middle.plot(coverage.columns, means, color=BLUE, linewidth=2.2, linestyle="--")
        middle.fill_between(
            coverage.columns,
            _means(coverage.reused),
            means,
            color=GREY,
            alpha=0.25,
            linewidth=0,
            label="loss: what moves from prompt to prompt",
        )
        middle.set_title("the same with columns of another prompt")
        _draw_distances(right, coverage.distances)
        handles, labels = [], []
        for axes in (left, middle):
            of_axes = axes.get_legend_handles_labels()
            handles += of_axes[0]
            labels += of_axes[1]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)


def _means(heads: Sequence[Sequence[float]]) -> list[float]:
    return [sum(of_heads) / len(heads) for of_heads in zip(*heads, strict=True)]


def _draw_heads(
    axes: Axes, coverage: Coverage, heads: Sequence[Sequence[float]], colour: str, name: str
) -> None:
    """Each head thin, their mean thick."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for index, values in enumerate(heads):
        axes.plot(
            coverage.columns,
            values,
            color=colour,
            alpha=max(0.08, min(0.5, 6 / len(heads))),
            linewidth=0.7,
            label=f"{name}, a head" if index == 0 else None,
        )
    axes.plot(
        coverage.columns,
        _means(heads),
        color=colour,
        linewidth=2.2,
        label=f"{name}, mean",
    )
    for mark in marks(coverage.length):
        axes.axvline(mark, color=INK, linewidth=0.8, linestyle=":")
        axes.text(mark, 0.98, f"{mark} ", fontsize=7.5, rotation=90, va="top", ha="right")
    axes.set_xscale("log", base=2)
    axes.set_xlim(coverage.columns[0], coverage.columns[-1])
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.tick_params(labelsize=7.5)
    share = PAPER_COLUMNS / PAPER_LENGTH
    axes.set_xlabel(
        f"columns, of {tokens(coverage.length)}\n(dotted: {share:.1%}, the paper's 4K of 128K)"
    )
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def distance_shares(distances: Sequence[Sequence[int]]) -> list[float]:
    """Of each distance, the mean over the heads that have any entries side by side."""
    heads = [[count / sum(of_head) for count in of_head] for of_head in distances if sum(of_head)]
    return _means(heads) if heads else [0.0] * len(distances[0])


def _draw_distances(axes: Axes, distances: Sequence[Sequence[int]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    *near, far = distance_shares(distances)
    axes.bar(range(1, len(near) + 1), near, color=BLUE)
    axes.bar([len(near) + 2], [far], color=GREY)
    axes.set_title("distance of an entry to the next")
    axes.set_xlabel(f"keys (grey: {len(near) + 1} or more)\n(entry: a probability above the mean)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.tick_params(labelsize=7.5)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
