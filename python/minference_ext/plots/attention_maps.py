"""Where the attention of heads lies, and what their patterns keep of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .canvas import VERMILION, Target, add_title, canvas, percent, shortened, tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 1e-3  # probabilities below it are not drawn
_AREA, _SKIPPED, _FUTURE = "#C9DDEE", "#F1F1F1", "#FFFFFF"
_KEPT, _MISSED = "#00456B", VERMILION
_WIDTHS = {1: 90, 2: 64, 3: 44, 4: 34}  # characters of a line above a panel, by panels in a row


@dataclass(frozen=True)
class AttentionMap:
    """One head, in square cells of queries by keys."""

    layer: int
    head: int
    role: str  #: "" if it has none
    pattern: str
    cell: int  #: tokens along a side of a cell; the last row and column may have fewer
    attended: Tensor  #: float [cells, cells]: the share of a cell's causal pairs
    kept: Tensor  #: float [cells, cells]: the largest probability of an attended pair
    missed: Tensor  #: float [cells, cells]: the largest probability of any other pair
    attended_share: float | None  #: of all causal pairs; None: it is not known what is attended
    recall: float  #: probability on attended pairs, mean over the queries
    recall_last: float  #: likewise, of the last queries alone


class Strip(NamedTuple):
    """Some keys, and the queries from the first of them on."""

    first: int  #: a multiple of the map's cell
    probability: Tensor  #: float [length - first, keys]: the true attention, 0 above the diagonal
    #: bool, likewise: the pairs that the pattern attends, none above the diagonal; None: not known
    mask: Tensor | None


def cell_of(length: int, cells: int) -> int:
    """Tokens along a side of a cell if a map has at most that many cells a side."""
    return math.ceil(length / cells)


def map_of_strips(
    layer: int,
    head: int,
    role: str,
    pattern: str,
    length: int,
    strips: Iterable[Strip],
    *,
    cells: int,
    num_last: int,
) -> AttentionMap:
    """Reduces a head to cells; a strip can go once it is added.

    Args:
        length: of the prompt, in tokens.
        strips: cover all keys.
        cells: per side, at most.
        num_last: queries at the end that count for recall_last, at least 1.
    """
    cell = cell_of(length, cells)
    side = math.ceil(length / cell)
    pairs, kept, missed = (torch.zeros(side, side) for _ in range(3))
    num_attended, mass, mass_last, is_known = 0, 0.0, 0.0, True
    for first, probability, mask in strips:
        row, column = (
            first // cell,
            slice(first // cell, -(-(first + probability.shape[1]) // cell)),
        )
        if mask is None:
            is_known, on_pattern = False, probability
        else:
            on_pattern = probability * mask
            pairs[row:, column] = _in_cells(mask.float(), cell).sum((1, 3))
            missed[row:, column] = _in_cells(probability.masked_fill(mask, 0), cell).amax((1, 3))
            num_attended += int(mask.sum())
        kept[row:, column] = _in_cells(on_pattern, cell).amax((1, 3))
        # Of each key first: sums in float64 would hold the strip in it.
        mass += float(on_pattern.sum(0).double().sum())
        mass_last += float(on_pattern[max(0, length - num_last - first) :].sum(0).double().sum())
    return AttentionMap(
        layer,
        head,
        role,
        pattern,
        cell,
        attended=pairs / _causal_pairs(length, cell).clamp(min=1),
        kept=kept,
        missed=missed,
        attended_share=num_attended / (length * (length + 1) // 2) if is_known else None,
        recall=mass / length,
        recall_last=mass_last / min(num_last, length),
    )


def _in_cells(values: Tensor, cell: int) -> Tensor:
    """[queries, keys] to [cells, cell, cells, cell], zeros behind."""
    rows, columns = (-size % cell for size in values.shape)
    if rows or columns:
        values = pad(values, (0, columns, 0, rows))
    return values.view(values.shape[0] // cell, cell, values.shape[1] // cell, cell)


def _causal_pairs(length: int, cell: int) -> Tensor:
    """Of each cell, [cells, cells]."""
    side = math.ceil(length / cell)
    sizes = torch.full((side,), float(cell))
    sizes[-1] = length - (side - 1) * cell
    below = (sizes[:, None] * sizes).tril(-1)
    return below + torch.diag(sizes * (sizes + 1) / 2)


# ---- Drawing -------------------------------------------------------------------------------------


def draw_attention_maps(
    path: Target,
    maps: Sequence[AttentionMap],
    length: int,
    title: str,
    last: str = "for questions",
) -> None:
    """One panel per head, row by row; `length` is the prompt's, in tokens.

    last: what the queries of recall_last are, in a word or two.
    """
    columns = min(4, len(maps))
    rows = math.ceil(len(maps) / columns)
    is_known = all(head.attended_share is not None for head in maps)
    texts = _head_texts(maps, last, _WIDTHS[columns])
    side = {1: 6.1, 2: 4.15, 3: 2.7, 4: 2.2}[columns]  # inches
    side += 0.14 * max(text.count("\n") for text in texts)
    with canvas(path, 9.0 if columns > 1 else 6.6, side * rows + 1.3) as figure:
        add_title(figure, title)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        ticks = [0, length // 2, length]
        for axes, head, text in zip(panels.flat, maps, texts, strict=False):
            end = head.cell * len(head.kept)
            axes.imshow(_rgb(head).numpy(), extent=(0, end, end, 0), interpolation="nearest")
            axes.set(xlim=(0, length), ylim=(length, 0))
            axes.set_title(text, fontsize=7.5)
            axes.set_xticks(ticks, [tokens(tick) for tick in ticks])
            axes.set_yticks(ticks, [tokens(tick) for tick in ticks])
            axes.tick_params(labelsize=7.5)
            axes.spines[["left", "bottom"]].set_position(("outward", 3))
        for axes in panels.flat[len(maps) :]:
            axes.set_visible(False)
        for axes in panels.flat[max(0, len(maps) - columns) : len(maps)]:  # nothing is below
            axes.set_xlabel("key", fontsize=8)
            axes.tick_params(labelbottom=True)
        for axes in panels[:, 0]:
            axes.set_ylabel("query", fontsize=8)
        _add_legend(figure, is_known)


def _head_texts(maps: Sequence[AttentionMap], last: str, width: int) -> list[str]:
    """Above each panel; all of them in the same lines, of at most `width` characters."""
    names = [shortened(head.pattern, width) for head in maps]
    shares = [
        "" if head.attended_share is None else f"{percent(head.attended_share)} of pairs"
        for head in maps
    ]
    widest = max(len(f"{name}: {share}") for name, share in zip(names, shares, strict=True))
    separator = ": " if widest <= width else "\n"
    texts = []
    for head, name, share in zip(maps, names, shares, strict=True):
        text = f"layer {head.layer} head {head.head}{': ' if head.role else ''}{head.role}\n{name}"
        if share:
            text += (
                f"{separator}{share}\n"
                f"keeps {percent(head.recall)}, {last} {percent(head.recall_last)}"
            )
        texts.append(text)
    return texts


def _intensity(probability: Tensor) -> Tensor:
    """0 at _LEAST and below, 1 at 1, logarithmic between."""
    return 1 - probability.clamp(min=_LEAST, max=1.0).log() / math.log(_LEAST)


def _colour(text: str) -> Tensor:
    return torch.tensor([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _rgb(head: AttentionMap) -> Tensor:
    """[cells, cells, 3]: the attended area, and attention on it or missed by it."""
    # The root shows single columns, which fill a small part of their cells.
    area = head.attended.clamp(max=1).sqrt()[..., None]
    existing = torch.ones_like(head.attended).tril().bool()[..., None]
    ground = torch.where(
        existing, area * _colour(_AREA) + (1 - area) * _colour(_SKIPPED), _colour(_FUTURE)
    )
    for probability, colour in ((head.kept, _KEPT), (head.missed, _MISSED)):
        strength = _intensity(probability)[..., None]
        ground = strength * _colour(colour) + (1 - strength) * ground
    return ground


def _add_legend(figure: Figure, is_known: bool) -> None:
    from matplotlib.patches import Patch

    least = f"less than {_LEAST:g}"
    handles = [
        Patch(facecolor=_SKIPPED, edgecolor="#BBBBBB", label="skipped" if is_known else least),
        Patch(color=_KEPT, label="attention kept" if is_known else "attention"),
    ]
    if is_known:
        handles.insert(0, Patch(color=_AREA, label="attended by the pattern"))
        handles.append(Patch(color=_MISSED, label="attention missed"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        title=f"attention: largest probability in a cell, {_LEAST:g} (pale) to 1, logarithmic",
        title_fontsize=8.5,
    )
