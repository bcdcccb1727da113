"""The pattern of every head of a model, coloured: layers by heads."""

from __future__ import annotations

from collections.abc import Sequence

from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern

from .canvas import COLOURS, Target, add_title, canvas, shortened

_OTHERS = "#BBBBBB"


def draw_head_patterns(
    path: Target,
    layers: Sequence[Sequence[HeadPattern | str]],
    counts: Sequence[tuple[HeadPattern | str, int]],
    title: str,
) -> None:
    """The most frequent patterns have colours of their own; the rest shares a grey.

    layers: [layers][heads]; methods and other names as text. counts: patterns, the most frequent
    first, and their heads.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    shown = counts if len(counts) <= len(COLOURS) + 1 else counts[: len(COLOURS)]
    rest = counts[len(shown) :]
    number = {pattern: index for index, (pattern, _) in enumerate(shown)}
    cells = [[number.get(pattern, len(shown)) for pattern in heads] for heads in layers]
    colours = [*COLOURS, _OTHERS]
    num_heads = sum(count for _, count in counts)
    labels = [f"{_text(pattern)}: {count / num_heads:.1%}" for pattern, count in shown]
    if rest:
        count = sum(count for _, count in rest)
        labels.append(f"{len(rest)} others: {count / num_heads:.1%}")

    # Cells are nearly square; the space beside them is for the labels.
    inches = min(0.45, 8.0 / len(layers), 6.2 / len(layers[0]))
    width = max(2.5, inches * len(layers[0])) + 3.4
    height = max(0.24 * len(labels) + 0.4, inches * len(layers)) + 1.1
    with canvas(path, width, height) as figure:
        axes = figure.subplots()
        axes.imshow(
            cells, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, aspect="auto"
        )
        add_title(figure, f"{title}\n{len(layers)} layers x {len(layers[0])} query heads")
        axes.set_xlabel("query head")
        axes.set_ylabel("layer")
        for axis, count in ((axes.xaxis, len(layers[0])), (axes.yaxis, len(layers))):
            axis.set_ticks(range(0, count, 8 if count > 16 else 1))
            axis.set_ticks([cell - 0.5 for cell in range(1, count)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        figure.legend(
            handles=[
                Patch(color=colour, label=label)
                for colour, label in zip(colours, labels, strict=False)
            ],
            loc="outside right center",
            title="share of the heads",
            fontsize=8.5,
        )


def _text(pattern: HeadPattern | str) -> str:
    return shortened(pattern, 40) if isinstance(pattern, str) else pattern_text(pattern)
