"""FlexPrefill: per head and prompt, columns and diagonals of blocks, or a map of all blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minference_ext.patterns import HeadPattern

from .block_lists import (
    BlockSelection,
    block_means,
    block_sums,
    check_block_size,
    exact,
    num_blocks,
    ranked,
)
from .method import Layer, LayerIndex, require

_TOKENS_PER_BLOCK = 128  # of the authors' code, whatever block_size


@dataclass(frozen=True)
class FlexPrefill(BlockSelection):
    """Blocks that cover a share `gamma` of the attention which the last queries show.

    With b = block_size, n = the number of key blocks, and A the probabilities of the last b
    queries, in float32: vertical[j] is their mean at key j, slash[o] their mean at offset o, each
    summing to 1 over the keys. Each head on its own:

    1. A prompt of at most max(2 b, min_budget rounded up to blocks) tokens is attended densely.
    2. n_v = floor(c / 128) + 1, where c = 1 + how many of the largest entries of `vertical` sum to
       at most gamma; n_s likewise from `slash`. Both are brought into the range min_budget ..
       max_budget, in whole blocks, at least one and at most n.
    3. The head is query-aware if sqrt(JSD) < tau, natural logarithms, between `vertical` summed
       over blocks and softmax(softmax_scale * mean of the last b queries . mean of each key
       block). Then n_v = n_s = the least of that range.
    4. It attends the n_v blocks of keys with the largest sums of `vertical`, block 0 first, and the
       n_s diagonals of blocks with the largest sums of `slash`, the main one first; diagonal s
       takes query block r to key block r - s. Ties go to the lower block or diagonal.
    5. A query-aware head attends besides: of all (query block, key block), by softmax per query
       block over softmax_scale * mean q . mean k up to the diagonal, the largest that together
       have at most gamma of the whole.

    A last block that is partial counts as a block: sums are over the keys there are, means divide
    by their true count. Offset o belongs to the diagonal s on which the last query's key at o lies:
    s blocks before the last one. Sums that are compared with gamma are of multiples of 2^-40, so
    they do not depend on the order of addition.

    Behind a prefix the last queries are those of the call (all, if they are fewer than b), step 5
    ranks the call's own query blocks, and all the rest is as for a prompt of kv_len tokens.

    `stats` counts the pairs of the blocks, not the choice: that costs b queries of dense attention,
    sorts of kv_len numbers and, for query-aware heads, products and a sort of the map of blocks.
    float8 is not supported.
    """

    gamma: float = 0.9
    tau: float = 0.1
    min_budget: int | None = None  #: tokens
    max_budget: int | None = None  #: tokens
    block_size: int = 128

    name: ClassVar[str] = "flexprefill"
    summary: ClassVar[str] = "Blocks that cover a share of the attention, chosen per head."
    source: ClassVar[str] = "FlexPrefill (arXiv 2502.20766), algorithms 1 to 4"

    def __post_init__(self) -> None:
        require(0 < self.gamma <= 1, f"{self.name}, gamma", self.gamma, "in (0, 1]")
        require(0 <= self.tau <= 1, f"{self.name}, tau", self.tau, "in [0, 1]")
        for name, budget in (("min_budget", self.min_budget), ("max_budget", self.max_budget)):
            require(
                budget is None or (type(budget) is int and budget >= 1),
                f"{self.name}, {name}",
                budget,
                "None or a whole number of tokens >= 1",
            )
        if self.min_budget is not None and self.max_budget is not None:
            require(
                self.min_budget <= self.max_budget,
                f"{self.name}, max_budget",
                self.max_budget,
                f"at least min_budget, which is {self.min_budget}",
            )
        check_block_size(self.name, self.block_size)

    def index(self, layer: Layer) -> LayerIndex:
        if layer.k.shape[2] <= max(2, self._least_blocks) * self.block_size:
            return LayerIndex((HeadPattern.dense(),) * layer.num_heads)
        return super().index(layer)

    def selected(self, layer: Layer) -> Iterator[Tensor]:
        for keys, group in layer.by_kv_head():
            keys = keys.float()
            key_means = block_means(keys, self.block_size)
            for queries in group:
                yield self._of_head(queries, keys, key_means, layer.scale)

    @property
    def _least_blocks(self) -> int:
        return num_blocks(self.min_budget or 1, self.block_size)

    def _of_head(self, queries: Tensor, keys: Tensor, key_means: Tensor, scale: float) -> Tensor:
        """bool [query blocks, key blocks] of one head."""
        size, key_blocks = self.block_size, len(key_means)
        last = queries[-size:].float()
        vertical, slash = _lines(last, keys, scale)
        vertical_blocks = block_sums(vertical, size)
        slash_blocks = block_sums(slash, size).flip(0)  # by diagonal: 0 is the main one
        estimate = torch.softmax(key_means @ last.mean(0) * scale, dim=0)
        is_query_aware = bool(_distance(estimate, vertical_blocks) < self.tau)
        num_vertical = num_slash = self._least_blocks
        if not is_query_aware:
            num_vertical = self._num_blocks(vertical, key_blocks)
            num_slash = self._num_blocks(slash, key_blocks)

        first_block = (len(keys) - len(queries)) // size
        blocks = torch.arange(key_blocks, device=keys.device)
        diagonal = blocks[first_block:, None] - blocks  # [query blocks, key blocks]
        is_column = _best(vertical_blocks, num_vertical)
        is_diagonal = _best(slash_blocks, num_slash)
        selected = is_column | is_diagonal[diagonal.clamp(min=0)]
        if is_query_aware:
            query_means = block_means(queries, size, first=len(keys) - len(queries))
            logits = query_means @ key_means.T * scale
            selected |= _covering(logits.masked_fill(diagonal < 0, -math.inf), self.gamma)
        return selected & (diagonal >= 0)

    def _num_blocks(self, line: Tensor, key_blocks: int) -> int:
        """How many blocks cover a share gamma of a line's entries, within the budgets."""
        sums = exact(line).sort(descending=True).values.cumsum(0)
        count = 1 + int((sums <= self.gamma * sums[-1]).sum())
        most = key_blocks
        if self.max_budget is not None:
            most = min(most, num_blocks(self.max_budget, self.block_size))
        return min(max(count // _TOKENS_PER_BLOCK + 1, self._least_blocks), most)


def _lines(last: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean probability of the last queries at each key, and along the diagonal that ends at each
    key in the last query's row, [kv_len] both."""
    rows, kv_len = len(last), len(keys)
    logits = (last * scale) @ keys.T
    is_later = torch.ones(rows, rows, dtype=torch.bool, device=keys.device).triu(1)
    logits[:, kv_len - rows :].masked_fill_(is_later, -math.inf)
    probabilities = torch.softmax(logits, dim=1)
    # Rows one element further apart put all elements of a diagonal into one column.
    shifted = F.pad(probabilities, (rows - 1, 0))
    skewed = shifted.as_strided((rows, kv_len), (shifted.shape[1] + 1, 1))
    return probabilities.mean(0), skewed.mean(0)


def _distance(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence."""
    p, q = p.double(), q.double()
    entropy = torch.special.entr(torch.stack((p, q, (p + q) / 2))).sum(1)
    divergence: Tensor = entropy[2] - (entropy[0] + entropy[1]) / 2
    return divergence.clamp(min=0).sqrt()


def _best(scores: Tensor, count: int) -> Tensor:
    """True at entry 0 and at the count - 1 best others."""
    first = torch.full_like(scores[:1], math.inf)
    best = ranked(torch.cat((first, scores[1:])))[:count]
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, best, True)


def _covering(logits: Tensor, gamma: float) -> Tensor:
    """True at the largest probabilities of the whole map that sum to at most gamma of it."""
    probabilities = exact(torch.softmax(logits, dim=1)).flatten()
    order = ranked(probabilities)
    sums = probabilities[order].cumsum(0)
    kept = sums <= gamma * sums[-1]
    return torch.zeros_like(kept).index_put_((order,), kept).view(logits.shape)
