"""Which needles a method finds: depth in the prompt by length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .canvas import BLUE, ORANGE, canvas, tokens


@dataclass(frozen=True)
class Retrieval:
    """What one method found."""

    method: str
    description: str  #: its pattern
    lengths: Sequence[int]  #: tokens, ascending
    depths: Sequence[float]  #: ascending, 0: start of the prompt, 1: its end
    found: Sequence[Sequence[bool]]  #: [lengths][depths]


def draw_retrieval(path: Path, results: Sequence[Retrieval], title: str) -> None:
    """One panel per method, side by side; all have the same lengths and depths."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    with canvas(path, 9.0, 4.1) as figure:
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, result in zip(panels, results, strict=True):
            cells = [list(column) for column in zip(*result.found, strict=True)]  # depth by length
            axes.imshow(cells, cmap=ListedColormap([ORANGE, BLUE]), vmin=0, vmax=1, aspect="auto")
            lengths, depths = len(result.lengths), len(result.depths)
            axes.set_xticks(range(lengths), [tokens(length) for length in result.lengths])
            axes.set_yticks(range(depths), [f"{depth:.0%}" for depth in result.depths])
            axes.set_xticks([column - 0.5 for column in range(1, lengths)], minor=True)
            axes.set_yticks([row - 0.5 for row in range(1, depths)], minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="both", length=0, labelsize=7.5)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("prompt, tokens")
            count = sum(sum(row) for row in result.found)
            axes.set_title(
                f"{result.method}: {count}/{lengths * depths}\n{result.description}", fontsize=8.5
            )
        panels[0].set_ylabel("depth of the needle")
        figure.legend(
            handles=[Patch(color=BLUE, label="found"), Patch(color=ORANGE, label="missed")],
            loc="outside lower center",
            ncols=2,
        )
