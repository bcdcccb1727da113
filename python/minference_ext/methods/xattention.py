"""XAttention: blocks ranked by the antidiagonals of their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_lists import (
    BlockSelection,
    check_block_size,
    exact,
    num_blocks,
    power_of_two_near,
    ranked,
)
from .method import Layer, require

_QUERIES_PER_STEP = 4096  # scores of this many queries at once, or fewer:
_SCORES_PER_STEP = 1 << 24  # 10 bytes each, at least those of one block of queries


@dataclass(frozen=True)
class XAttention(BlockSelection):
    """For each block of queries the blocks of keys that have a share `threshold` of its score.

    Tokens are taken in groups of `stride`, at multiples of it. With S = stride, the score of query
    group a and key group c <= a is

        softmax_scale / (S * norm) * sum_t q[a S + S - 1 - t] . k[c S + t],    t = 0 .. S - 1,

    an antidiagonal of their S x S tile. Its softmax over c is summed over all pairs of groups in a
    block of `block_size` x `block_size` tokens. Each block of queries attends its own block of keys
    and block 0, then the others from the largest sum to the smallest, as long as the sum of those
    before (these two included) is below `threshold` times the sum of all. Ties go to the lowest
    block; sums are of multiples of 2^-40, so they do not depend on the order of addition.

    A last group that is partial is filled up with zeros; a last block holds the groups there are.
    Products are computed in the dtype of q and k (the score of a pair of groups is rounded to it),
    softmax and sums in float32. The choice costs 1 / (2 stride) of dense attention's products;
    `stats` counts the pairs of the blocks alone.

    Behind a prefix, groups and blocks count from key 0. A query group that the prefix cuts is
    filled up with zeros. float8 is not supported.
    """

    stride: int = 8
    threshold: float = 0.9
    block_size: int = 128
    norm: float = 1.0

    name: ClassVar[str] = "xattention"
    summary: ClassVar[str] = "Blocks ranked by sums over antidiagonals, up to a share of the score."
    source: ClassVar[str] = "XAttention (arXiv 2503.16428), section 2"

    def __post_init__(self) -> None:
        check_block_size(self.name, self.block_size)
        require(
            type(self.stride) is int and self.stride > 0 and self.block_size % self.stride == 0,
            f"{self.name}, stride",
            self.stride,
            f"a whole number that divides block_size, which is {self.block_size}",
        )
        require(0 < self.threshold <= 1, f"{self.name}, threshold", self.threshold, "in (0, 1]")
        require(
            0 < self.norm < math.inf, f"{self.name}, norm", self.norm, "a finite number above 0"
        )

    def selected(self, layer: Layer) -> Iterator[Tensor]:
        kv_len = layer.k.shape[2]
        factor = layer.scale / (self.stride * self.norm)
        for keys, group in layer.by_kv_head():
            keys = F.pad(keys, (0, 0, 0, -kv_len % self.stride))
            keys = keys.reshape(-1, self.stride * keys.shape[1])  # [groups, stride * head_dim]
            for queries in group:
                yield self._of_head(queries, keys, kv_len, factor)

    def _of_head(self, queries: Tensor, keys: Tensor, kv_len: int, factor: float) -> Tensor:
        """bool [query blocks, key blocks] of one head."""
        size, key_blocks = self.block_size, num_blocks(kv_len, self.block_size)
        first_block = (kv_len - len(queries)) // size
        scores_per_block = len(keys) * (size // self.stride)
        step = max(1, min(_QUERIES_PER_STEP // size, _SCORES_PER_STEP // scores_per_block))
        parts = []
        for begin in range(first_block, key_blocks, step):
            end = min(begin + step, key_blocks)
            scores = self._block_scores(queries, keys, kv_len, factor, begin, end)
            kept = _above_threshold(scores, begin, self.threshold)
            parts.append(F.pad(kept, (0, key_blocks - end)))
        return torch.cat(parts)

    def _block_scores(
        self, queries: Tensor, keys: Tensor, kv_len: int, factor: float, begin: int, end: int
    ) -> Tensor:
        """Score of query blocks begin .. end - 1 in key blocks 0 .. end - 1, float32."""
        prefix, per_block = kv_len - len(queries), self.block_size // self.stride
        first, last = begin * self.block_size, end * self.block_size
        rows = queries[max(first - prefix, 0) : last - prefix]
        missing = max(prefix - first, 0)
        rows = F.pad(rows, (0, 0, missing, last - first - missing - len(rows)))
        rows = rows.unflatten(0, (-1, self.stride)).flip(1).flatten(1)
        near = power_of_two_near(factor)
        columns = keys[: end * per_block]
        scores = ((rows * near) @ columns.T).float().mul_(factor / near)
        query_group = torch.arange(begin * per_block, end * per_block, device=keys.device)[:, None]
        key_group = torch.arange(len(columns), device=keys.device)
        scores.masked_fill_(key_group > query_group, -math.inf)
        scores = torch.softmax(scores, dim=1)
        has_query = (query_group >= prefix // self.stride) & (query_group < len(keys))
        scores.mul_(has_query)
        scores = F.pad(scores, (0, end * per_block - len(columns)))
        return scores.view(end - begin, per_block, end, per_block).sum((1, 3))


def _above_threshold(scores: Tensor, first_block: int, threshold: float) -> Tensor:
    """bool as scores [query blocks, key blocks]: what each block of queries keeps."""
    blocks = torch.arange(scores.shape[1], device=scores.device)
    own = torch.arange(first_block, first_block + len(scores), device=scores.device)[:, None]
    is_forced = (blocks == own) | (blocks == 0)
    scores = exact(scores)
    order = ranked(scores.masked_fill(is_forced, math.inf))
    in_order = scores.gather(1, order)
    sums = in_order.cumsum(1)
    is_kept = sums - in_order < threshold * sums[:, -1:]
    return torch.zeros_like(is_kept).scatter_(1, order, is_kept) | is_forced
