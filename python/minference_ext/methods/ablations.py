"""Vertical-slash with one kind of line taken away, as MInference's ablations have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minference_ext.patterns import HeadPattern
from minference_ext.vs_index import estimate_vs_index

from .method import Layer, LayerIndex, Method, check_sizes
from .shapes import MINFERENCE

_SOURCE = f"{MINFERENCE}, appendix D.3"


@dataclass(frozen=True)
class OnlyVertical(Method):
    """The best columns, and the main diagonal.

    A query at position i attends key j <= i if j is one of the min(kv_len, vertical_size) best
    columns, or if it lies at the position of a query of the same row block: what the diagonal
    covers. Columns are ranked as in `minference_ext.vs_attention`: 0..29 first, then by the
    probabilities of the last 64 queries, ties to the lowest index; a vertical_size below 30 takes
    the first columns.

    The original's kernel needs a line of each kind, so the paper keeps the best diagonal too: that
    is offset 0, which its ranking puts first. A head that dense attention would serve sooner still
    attends these keys only.
    """

    vertical_size: int = 4096

    name: ClassVar[str] = "only_vertical"
    summary: ClassVar[str] = "Ablation: the best columns and no diagonal but the main one."
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        check_sizes(self.name, vertical_size=self.vertical_size)

    def index(self, layer: Layer) -> LayerIndex:
        columns, _ = estimate_vs_index(
            layer.q, layer.k, self.vertical_size, 0, softmax_scale=layer.softmax_scale
        )
        return _lines(layer, columns[..., : self.vertical_size], _first_line(layer))


@dataclass(frozen=True)
class OnlySlash(Method):
    """The best diagonals, and the first column.

    A query attends key j if j = 0, or if one of the min(kv_len, slash_size) best offsets covers j
    for the query's row block, as in `minference_ext.vs_attention`. Offsets are ranked as there:
    0..99 first, then by the probabilities of the last 64 queries, ties to the lowest index; a
    slash_size below 100 takes the first offsets.

    The original's kernel needs a line of each kind, so the paper keeps the best column too: that is
    column 0, which its ranking puts first. A head that dense attention would serve sooner still
    attends these keys only.
    """

    slash_size: int = 4096

    name: ClassVar[str] = "only_slash"
    summary: ClassVar[str] = "Ablation: the best diagonals and no column but the first."
    source: ClassVar[str] = _SOURCE

    def __post_init__(self) -> None:
        check_sizes(self.name, slash_size=self.slash_size)

    def index(self, layer: Layer) -> LayerIndex:
        _, offsets = estimate_vs_index(
            layer.q, layer.k, 0, self.slash_size, softmax_scale=layer.softmax_scale
        )
        return _lines(layer, _first_line(layer), offsets[..., : self.slash_size])


def _first_line(layer: Layer) -> Tensor:
    """Column 0, or offset 0, of every head: int32 [1, H, 1]."""
    return torch.zeros((1, layer.num_heads, 1), dtype=torch.int32, device=layer.q.device)


def _lines(layer: Layer, columns: Tensor, offsets: Tensor) -> LayerIndex:
    return LayerIndex(
        (HeadPattern.vertical_slash_index(),) * layer.num_heads,
        vertical_idx=columns,
        slash_idx=offsets,
    )
