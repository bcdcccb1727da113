"""Square blocks that a method selects, as the lists of `minference_ext.sparse_attention`, and the
sums and ranks by which it selects them.

Blocks have `block_size` tokens, a multiple of 64, and count from key 0 on both axes: a query
belongs to the block of its position i = r + (kv_len - q_len). The kernels' row blocks are 64
queries, counted from the first of the call. Behind a prefix that is no multiple of 64 one of them
can lie in two blocks of queries; it attends what either of these selects.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from minference_ext.patterns import HeadPattern

from .method import Layer, LayerIndex, Method, require

ROW_BLOCK = 64  # queries of a row block, keys of a listed block
_GRAIN = 2.0**40
_TILES_PER_STEP = 1 << 24  # listed at once, some 25 bytes each
_LIST_BYTES = 1 << 30  # of the heads attended at once, if every block were listed


def check_block_size(name: str, block_size: int) -> None:
    require(
        type(block_size) is int and block_size > 0 and block_size % ROW_BLOCK == 0,
        f"{name}, block_size",
        block_size,
        f"a positive multiple of {ROW_BLOCK}",
    )


def num_blocks(length: int, block_size: int) -> int:
    return -(-length // block_size)


def exact(probabilities: Tensor) -> Tensor:
    """Probabilities as float64 multiples of 2^-40: sums up to 8,192 do not round, so they are the
    same in any order, on any device."""
    return torch.round(probabilities.double() * _GRAIN) / _GRAIN


def ranked(scores: Tensor) -> Tensor:
    """Indices along the last axis from the best score to the worst, ties to the lowest index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def block_means(rows: Tensor, block_size: int, first: int = 0) -> Tensor:
    """Mean of each block's rows, float32 `[blocks, head_dim]`.

    Args:
        rows: `[length, head_dim]` at positions first .. first + length - 1. Means divide by the
            true count of a partial block.
    """
    head = min(-first % block_size, rows.shape[0])
    whole = (rows.shape[0] - head) // block_size
    tail = head + whole * block_size
    blocks = rows[head:tail].reshape(whole, block_size, rows.shape[1])
    means = [blocks.mean(1, dtype=torch.float32)]
    if head > 0:
        means.insert(0, rows[:head].mean(0, keepdim=True, dtype=torch.float32))
    if tail < rows.shape[0]:
        means.append(rows[tail:].mean(0, keepdim=True, dtype=torch.float32))
    return torch.cat(means)


def block_sums(values: Tensor, block_size: int) -> Tensor:
    """Sum over each block of the last axis, which need not be whole blocks: `[..., blocks]`."""
    padded = F.pad(values, (0, -values.shape[-1] % block_size))
    return padded.view(*values.shape[:-1], -1, block_size).sum(-1)


def power_of_two_near(factor: float) -> float:
    """What a factor may be split by without rounding: queries times this, scores by the rest, keep
    products of float16 in range."""
    return 2.0 ** round(math.log2(factor))


def of_lists(listed: list[Tensor]) -> LayerIndex:
    """The index of heads with these key blocks, int32 `[row blocks, n]` each, -1 for no entry."""
    row_blocks, longest = len(listed[0]), max(lists.shape[1] for lists in listed)
    block_idx = listed[0].new_full((1, len(listed), row_blocks, longest), -1)
    for head, lists in enumerate(listed):
        block_idx[0, head, :, : lists.shape[1]] = lists
    return LayerIndex((HeadPattern.block_index(),) * len(listed), block_idx=block_idx)


def _lists_of(selected: Tensor, q_len: int, kv_len: int, block_size: int) -> Tensor:
    """The lists of a head that selected these blocks, int32 `[row blocks, n]`."""
    prefix = kv_len - q_len
    begins = torch.arange(prefix, kv_len, ROW_BLOCK, device=selected.device)
    ends = (begins + ROW_BLOCK - 1).clamp(max=kv_len - 1)  # the last query of each row block
    keys = torch.arange(0, kv_len, ROW_BLOCK, device=selected.device)
    step = max(1, _TILES_PER_STEP // len(keys))
    parts = []
    for begin, end in zip(begins.split(step), ends.split(step), strict=True):
        first, last = (rows // block_size - prefix // block_size for rows in (begin, end))
        tiles = (selected[first] | selected[last]).repeat_interleave(block_size // ROW_BLOCK, dim=1)
        parts.append(_listed(tiles[:, : len(keys)] & (keys <= end[:, None])))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=-1) for part in parts])


def _listed(tiles: Tensor) -> Tensor:
    """The columns at which a row is True, int32 `[rows, the longest list]`, then -1."""
    count = tiles.cumsum(1)
    longest = int(count[:, -1].max())
    slots = torch.where(tiles, count - 1, longest)  # the rest goes to a column that is cut off
    columns = torch.arange(tiles.shape[1], dtype=torch.int32, device=tiles.device)
    listed = columns.new_full((tiles.shape[0], longest + 1), -1)
    return listed.scatter_(1, slots, columns.expand_as(slots))[:, :longest]


class BlockSelection(Method):
    """Methods whose heads, each on its own, select square blocks; subclasses have `block_size`."""

    block_size: int

    @abstractmethod
    def selected(self, layer: Layer) -> Iterator[Tensor]:
        """Of each head bool `[query blocks, key blocks]`; the first block of queries is that of the
        first query. Each includes its own block of keys; those that causality hides do not matter.
        """

    def index(self, layer: Layer) -> LayerIndex:
        q_len, kv_len = layer.q.shape[2], layer.k.shape[2]
        return of_lists(
            [_lists_of(head, q_len, kv_len, self.block_size) for head in self.selected(layer)]
        )

    def heads_at_once(self, layer: Layer) -> int:
        """Whole groups, as many as have lists of _LIST_BYTES; all of 32 heads up to 180K tokens."""
        q_len, kv_len = layer.q.shape[2], layer.k.shape[2]
        list_bytes = 4 * num_blocks(q_len, ROW_BLOCK) * num_blocks(kv_len, ROW_BLOCK)
        return layer.group * max(1, _LIST_BYTES // (list_bytes * layer.group))
