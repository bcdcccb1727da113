"""What every head attends, and the part of it that its pattern computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canvas import VERMILION, canvas, tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 1e-3  # probabilities below it are not drawn
_AREA, _SKIPPED, _FUTURE = "#C9DDEE", "#F1F1F1", "#FFFFFF"
_KEPT, _MISSED = "#00456B", VERMILION


@dataclass(frozen=True)
class AttentionMap:
    """One head, in blocks of queries by keys."""

    layer: int
    head: int
    role: str
    pattern: str
    attended: Tensor  #: float [blocks, blocks]: the share of a block's causal pairs
    kept: Tensor  #: float [blocks, blocks]: the largest probability of an attended pair
    missed: Tensor  #: float [blocks, blocks]: the largest probability of any other pair
    attended_share: float  #: of all causal pairs
    recall: float  #: probability on attended pairs, mean over the queries
    recall_last: float  #: likewise, of the last queries alone


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
    """Reduces a head to blocks.

    Args:
        probability: [length, length], the true attention of each query (row).
        mask: bool, likewise: the pairs that the pattern attends, none above the diagonal.
        blocks: per side, at most length.
        num_last: queries at the end that count for recall_last, at least 1.
    """
    length = probability.shape[0]
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def share(pairs: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pairs[None].float(), blocks)[0]

    def largest(values: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_max_pool2d(values[None].float(), blocks)[0]

    kept = probability * mask
    return AttentionMap(
        layer,
        head,
        role,
        pattern,
        attended=share(mask) / share(causal).clamp(min=1 / length**2),
        kept=largest(kept),
        missed=largest(probability * ~mask),
        attended_share=float(mask.sum() / causal.sum()),
        recall=float(kept.sum() / length),
        recall_last=float(kept[-num_last:].sum() / num_last),
    )


def draw_attention_maps(
    path: Path, maps: Sequence[AttentionMap], length: int, title: str, columns: int = 4
) -> None:
    """One panel per head, row by row; `length` is the prompt's, in tokens."""
    rows = math.ceil(len(maps) / columns)
    with canvas(path, 9.0, 2.35 * rows + 1.3) as figure:
        figure.suptitle(title, fontsize=11)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        ticks = [0, length // 2, length]
        for axes, head in zip(panels.flat, maps, strict=False):
            axes.imshow(_rgb(head).numpy(), extent=(0, length, length, 0), interpolation="nearest")
            axes.set_title(
                f"layer {head.layer} head {head.head}: {head.role}\n"
                f"{head.pattern}: {head.attended_share:.1%} of pairs\n"
                f"keeps {head.recall:.1%}, for questions {head.recall_last:.1%}",
                fontsize=7.5,
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
        _add_legend(figure)


def _intensity(probability: Tensor) -> Tensor:
    """0 at _LEAST and below, 1 at 1, logarithmic between."""
    return 1 - probability.clamp(min=_LEAST, max=1.0).log() / math.log(_LEAST)


def _colour(text: str) -> Tensor:
    return torch.tensor([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _rgb(head: AttentionMap) -> Tensor:
    """[blocks, blocks, 3]: the computed area, and attention on it or missed by it."""
    # The root shows single columns, which fill a small part of their blocks.
    area = head.attended.sqrt()[..., None]
    existing = torch.ones_like(head.attended).tril().bool()[..., None]
    ground = torch.where(
        existing, area * _colour(_AREA) + (1 - area) * _colour(_SKIPPED), _colour(_FUTURE)
    )
    for probability, colour in ((head.kept, _KEPT), (head.missed, _MISSED)):
        strength = _intensity(probability)[..., None]
        ground = strength * _colour(colour) + (1 - strength) * ground
    return ground


def _add_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(color=_AREA, label="computed by the pattern"),
            Patch(facecolor=_SKIPPED, edgecolor="#BBBBBB", label="skipped"),
            Patch(color=_KEPT, label="attention kept"),
            Patch(color=_MISSED, label="attention missed"),
        ],
        loc="outside lower center",
        ncols=4,
        title=f"attention: largest probability of a block, {_LEAST:g} (pale) to 1, logarithmic",
        title_fontsize=8.5,
    )
