"""Which pairs a method attends, at any length: keys leave their mark in the attention's output.

With a softmax scale so small that all probabilities of a row are equal, the output of a query is
the mean of the values it attends. Values are powers of two, several keys to an element: the sum of
an element then has one bit for each key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex, Method
from minference_ext.ops import plan_stats, sparse_attention
from minference_ext.patterns import HeadPattern
from minference_ext.vs_index import estimate_vs_index

# The least scale that the ops take: the probabilities of a row are equal, blocks keep their order.
_FLAT = 2.0**-100
_ROW_BLOCK = 64
# Keys to an element of the output, whose significand must tell all sums of powers of two apart.
_BITS = {torch.float32: 16, torch.float16: 10, torch.bfloat16: 7}


def has_index(method: Method) -> bool:
    """Whether the method says which pairs it attends, and attends by nothing else."""
    return type(method).attend is Method.attend


@dataclass(frozen=True)
class _Piece:
    """Queries that attend by the same lists."""

    first: int
    end: int
    index: LayerIndex | None  #: of one head, without lists to estimate; None: all keys up to them


class AttendedPairs:
    """What one head of a layer attends.

    Keys are looked up in groups, as many as one call of attention tells apart; the latest group is
    kept, so strips of ascending keys cost one call for each.

    layer: of a whole prompt.
    index: as the method gave it for all heads of the layer.
    """

    def __init__(self, layer: Layer, index: LayerIndex, head: int) -> None:
        kv_head = head // layer.group
        self._q = layer.q[:, head : head + 1]  # [1, 1, length, head_dim]
        self._k = layer.k[:, kv_head : kv_head + 1]
        self._pieces = _pieces(self._q, self._k, _of_head(index, head), layer.scale)
        self._bits = _BITS[self._k.dtype]
        self._group_keys = self._bits * self._k.shape[-1]
        self._latest: tuple[int, list[Tensor]] = (-1, [])

    def strip(self, first: int, end: int) -> Tensor:
        """bool `[length - first, end - first]` on the layer's device: which of the keys first ..
        end - 1 the queries from `first` on attend."""
        size = (self._q.shape[2] - first, end - first)
        mask = torch.zeros(size, dtype=torch.bool, device=self._q.device)
        for piece in self._pieces:
            if piece.index is None and piece.end > first:
                row = max(first, piece.first)
                own = mask[row - first : piece.end - first, : piece.end - first]
                own.fill_(True).tril_(row - first)
        for group in range(first // self._group_keys, (end - 1) // self._group_keys + 1):
            first_key = group * self._group_keys
            for piece, sums in zip(self._pieces, self._sums(group), strict=True):
                begin = max(first, first_key)
                stop = min(end, first_key + self._group_keys, piece.end)
                row = max(first, piece.end - len(sums))  # the first query that counts
                if row >= piece.end or begin >= stop:
                    continue
                element, bit = self._place(begin, stop)
                own = sums[row - piece.end :, element].bitwise_right_shift_(bit).bitwise_and_(1)
                mask[row - first : piece.end - first, begin - first : stop - first] = own
        return mask

    def _place(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """The element of the output that tells of each key begin .. end - 1, and the bit of it."""
        within = torch.arange(begin, end, device=self._q.device) % self._group_keys
        return within // self._bits, within % self._bits

    def _sums(self, group: int) -> list[Tensor]:
        """int32 `[queries, head_dim]` of each piece: a bit for each key of the group; queries are
        the last ones of the piece, those that may attend one, and none where no lists say it."""
        if self._latest[0] != group:
            self._latest = (group, [self._attend(piece, group) for piece in self._pieces])
        return self._latest[1]

    def _attend(self, piece: _Piece, group: int) -> Tensor:
        """Queries of the piece, in whole row blocks, and keys up to its last: a call of its own."""
        first = group * self._group_keys
        begin = max(piece.first, first // _ROW_BLOCK * _ROW_BLOCK)
        index = piece.index
        if index is None or begin >= piece.end:
            return self._q.new_empty((0, self._k.shape[-1]), dtype=torch.int32)
        q, k = self._q[:, :, begin : piece.end], self._k[:, :, : piece.end]
        end = min(piece.end, first + self._group_keys)
        element, bit = self._place(first, end)
        v = torch.zeros_like(k)
        v[0, 0, torch.arange(first, end, device=v.device), element] = (2.0**bit).to(v.dtype)
        if index.block_idx is not None:
            row_blocks = index.block_idx[:, :, (begin - piece.first) // _ROW_BLOCK :]
            index = replace(index, block_idx=row_blocks)
        out, lse = sparse_attention(q, k, v, softmax_scale=_FLAT, **index.arguments())
        count = lse[0, 0].exp().round()  # of attended keys; a row without any has 0
        return (out[0, 0].float() * count[:, None]).round().to(torch.int32)


def _of_head(index: LayerIndex, head: int) -> LayerIndex:
    def of_head(lists: Tensor | None) -> Tensor | None:
        return None if lists is None else lists[:, head : head + 1]

    return replace(
        index,
        head_patterns=(index.head_patterns[head],),
        vertical_idx=of_head(index.vertical_idx),
        slash_idx=of_head(index.slash_idx),
        block_idx=of_head(index.block_idx),
    )


def _pieces(q: Tensor, k: Tensor, index: LayerIndex, scale: float) -> list[_Piece]:
    """Queries from the first to the last, with lists in place of estimates."""
    length = q.shape[2]
    (pattern,) = index.head_patterns
    plain = replace(index, estimate_every=0, dense_fallback=False)
    if pattern.kind != "vertical_slash":
        stats = plan_stats(q, k, softmax_scale=scale, **index.arguments())
        return [_Piece(0, length, None if bool(stats.is_dense) else plain)]
    pieces = []
    every = index.estimate_every or length
    for first in range(0, length, every):
        end = min(first + every, length)
        own_q, own_k = q[:, :, first:end], k[:, :, :end]
        own = replace(index, estimate_every=0)
        is_dense = plan_stats(own_q, own_k, softmax_scale=scale, **own.arguments()).is_dense
        lists = None
        if not bool(is_dense):
            vertical, slash = estimate_vs_index(own_q, own_k, *pattern.sizes, softmax_scale=scale)
            lists = replace(
                plain,
                head_patterns=(HeadPattern.vertical_slash_index(),),
                vertical_idx=vertical,
                slash_idx=slash,
            )
        pieces.append(_Piece(first, end, lists))
    return pieces


def strip_width(cell: int, least: int) -> int:
    """Keys of a strip: whole cells, `least` or somewhat more."""
    return cell * math.ceil(least / cell)
