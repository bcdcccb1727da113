"""What every head attends, and the part of it that its pattern computes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .canvas import VERMILION, Target, canvas, shortened, tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 1e-3  # probabilities below it are not drawn
_AREA, _SKIPPED, _FUTURE = "#C9DDEE", "#F1F1F1", "#FFFFFF"
_KEPT, _MISSED = "#00456B", VERMILION


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
    attended_share: float | None  #: of all causal pairs; None: what is attended is not known
    recall: float  #: probability on attended pairs, mean over the queries
    recall_last: float  #: likewise, of the last queries alone


class Strip(NamedTuple):
    """Some keys, and the queries from the first of them on."""

    first: int  #: a multiple of the map's cell
    probability: Tensor  #: float [length - first, keys]: the true attention, 0 above the diagonal
    mask: Tensor  #: bool, likewise: the pairs that the pattern attends, none above the diagonal


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
    is_known: bool = True,
) -> AttentionMap:
    """Reduces a head to cells; a strip can go once it is added.

    Args:
        length: of the prompt, in tokens.
        strips: cover all keys.
        cells: per side, at most.
        num_last: queries at the end that count for recall_last, at least 1.
        is_known: False: what the pattern attends is not known, masks are all True.
    """
    cell = cell_of(length, cells)
    side = math.ceil(length / cell)
    pairs, kept, missed = (torch.zeros(side, side) for _ in range(3))
    num_attended, mass, mass_last = 0, 0.0, 0.0
    for first, probability, mask in strips:
        on_pattern = probability * mask
        row, column = first // cell, slice(first // cell, -(-(first + mask.shape[1]) // cell))
        pairs[row:, column] = _in_cells(mask.float(), cell).sum((1, 3))
        kept[row:, column] = _in_cells(on_pattern, cell).amax((1, 3))
        missed[row:, column] = _in_cells(probability - on_pattern, cell).amax((1, 3))
        num_attended += int(mask.sum())
        mass += float(on_pattern.sum(dtype=torch.float64))
        last = max(0, length - num_last - first)
        mass_last += float(on_pattern[last:].sum(dtype=torch.float64))
    share = pairs / _causal_pairs(length, cell).clamp(min=1)
    return AttentionMap(
        layer,
        head,
        role,
        pattern,
        cell,
        attended=share if is_known else torch.zeros_like(share),
        kept=kept,
        missed=missed,
        attended_share=num_attended / (length * (length + 1) // 2) if is_known else None,
        recall=mass / length,
        recall_last=mass_last / min(num_last, length),
    )


def attention_map(
    layer: int,
    head: int,
    role: str,
    pattern: str,
    probability: Tensor,
    mask: Tensor,
    *,
    blocks: int,
    num_last: int,
) -> AttentionMap:
    """`map_of_strips` of one whole matrix.

    Args:
        probability: [length, length], the true attention of each query (row).
        mask: bool, likewise: the pairs that the pattern attends, none above the diagonal.
        blocks: cells per side, at most.
        num_last: queries at the end that count for recall_last, at least 1.
    """
    whole = [Strip(0, probability, mask)]
    length = probability.shape[0]
    return map_of_strips(layer, head, role, pattern, length, whole, cells=blocks, num_last=num_last)


def _in_cells(values: Tensor, cell: int) -> Tensor:
    """[queries, keys] to [cells, cell, cells, cell], zeros behind."""
    rows, columns = (-size % cell for size in values.shape)
    values = pad(values.float(), (0, columns, 0, rows))
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
    columns: int = 4,
    last: str = "for questions",
) -> None:
    """One panel per head, row by row; `length` is the prompt's, in tokens.

    last: what the queries of recall_last are, in a word or two.
    """
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    side = {1: 6.2, 2: 4.4, 3: 3.1}.get(columns, 2.35)  # inches
    with canvas(path, 9.0 if columns > 1 else 6.6, side * rows + 1.3) as figure:
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        ticks = [0, length // 2, length]
        for axes, head in zip(panels.flat, maps, strict=False):
            end = head.cell * len(head.kept)
            axes.imshow(_rgb(head).numpy(), extent=(0, end, end, 0), interpolation="nearest")
            axes.set(xlim=(0, length), ylim=(length, 0))
            axes.set_title(
                _head_text(head, last, {1: 90, 2: 70, 3: 54}.get(columns, 42)), fontsize=7.5
            )
            axes.set_xticks(ticks, [tokens(tick) for tick in ticks])
            axes.set_yticks(ticks, [tokens(tick) for tick in ticks])
            axes.tick_params(labelsize=7.5)
            axes.spines[["left", "bottom"]].set_position(("outward", 3))
        for axes in panels.flat[len(maps) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("key", fontsize=8)
        for axes in panels[:, 0]:
            axes.set_ylabel("query", fontsize=8)
        _add_legend(figure, all(head.attended_share is not None for head in maps))


def _head_text(head: AttentionMap, last: str, width: int) -> str:
    """width: characters of a line."""
    name = f"layer {head.layer} head {head.head}"
    if head.role:
        name += f": {head.role}"
    pattern = shortened(head.pattern, width)
    if head.attended_share is None:
        return f"{name}\n{pattern}"
    share = f"{head.attended_share:.1%} of pairs"
    separator = ": " if len(f"{pattern}: {share}") <= width else "\n"
    return (
        f"{name}\n{pattern}{separator}{share}\n"
        f"keeps {head.recall:.1%}, {last} {head.recall_last:.1%}"
    )


def _intensity(probability: Tensor) -> Tensor:
    """0 at _LEAST and below, 1 at 1, logarithmic between."""
    return 1 - probability.clamp(min=_LEAST, max=1.0).log() / math.log(_LEAST)


def _colour(text: str) -> Tensor:
    return torch.tensor([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _rgb(head: AttentionMap) -> Tensor:
    """[cells, cells, 3]: the computed area, and attention on it or missed by it."""
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

    handles = [Patch(color=_KEPT, label="attention kept" if is_known else "attention")]
    if is_known:
        handles = [
            Patch(color=_AREA, label="computed by the pattern"),
            Patch(facecolor=_SKIPPED, edgecolor="#BBBBBB", label="skipped"),
            *handles,
            Patch(color=_MISSED, label="attention missed"),
        ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        title=f"attention: largest probability of a block, {_LEAST:g} (pale) to 1, logarithmic",
        title_fontsize=8.5,
    )
