"""The best blocks there are: an upper bound for methods that guess them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minference_ext.ops import dense_attention

from .block_lists import ROW_BLOCK, num_blocks, of_lists, ranked
from .method import Layer, LayerIndex, Method, check_sizes

_SCORES_PER_STEP = 1 << 24  # 12 bytes each, at least those of one row block


@dataclass(frozen=True)
class TopK(Method):
    """The `top_k` key blocks with the most attention: an oracle, not a way to save time.

    Each row block of 64 queries attends the 64-wide key blocks n that hold the most of its dense
    attention: the sum over its queries i and the keys j of n of exp(softmax_scale * q_i . k_j -
    lse_i), in float32, where lse is that of dense attention. Ties go to the lowest block. All
    blocks that causality allows, where these are at most `top_k`.

    It computes dense attention and then every score once more, so it costs more than dense
    attention; `stats` counts the pairs of the blocks alone. It is there to be compared with: no
    other choice of `top_k` blocks recalls more attention, so what a method recalls below it is lost
    by guessing, and what it loses itself is lost by blocks of that number and size.

    Behind a prefix that is no multiple of 64 with `top_k` 1, a query may be left without a key: the
    one block its row block attends may begin behind it. Its output is then 0. float8 is not
    supported.
    """

    top_k: int = 100

    name: ClassVar[str] = "top_k"
    summary: ClassVar[str] = (
        "The key blocks with the most attention: an oracle, slower than dense attention."
    )
    source: ClassVar[str] = "the bound of every method of 64-wide blocks"

    def __post_init__(self) -> None:
        check_sizes(self.name, least=1, top_k=self.top_k)

    def index(self, layer: Layer) -> LayerIndex:
        _, lse = dense_attention(layer.q, layer.k, layer.v, softmax_scale=layer.softmax_scale)
        listed: list[Tensor] = []
        for (keys, group), group_lse in zip(
            layer.by_kv_head(), lse[0].split(layer.group), strict=True
        ):
            keys = keys.float()
            listed += [
                self._listed(queries, keys, queries_lse, layer.scale)
                for queries, queries_lse in zip(group, group_lse, strict=True)
            ]
        return of_lists(listed)

    def _listed(self, queries: Tensor, keys: Tensor, lse: Tensor, scale: float) -> Tensor:
        """Key blocks of one head, int32 [row blocks, min(top_k, key blocks)]."""
        q_len, kv_len = len(queries), len(keys)
        prefix, key_blocks = kv_len - q_len, num_blocks(kv_len, ROW_BLOCK)
        step = max(1, _SCORES_PER_STEP // (kv_len * ROW_BLOCK)) * ROW_BLOCK
        width = min(self.top_k, key_blocks)
        parts = []
        for begin in range(0, q_len, step):
            end = min(begin + step, q_len)
            rows, columns = queries[begin:end].float(), keys[: end + prefix]
            mass = _block_mass(rows, columns, lse[begin:end], scale)
            best = ranked(mass)[:, :width]
            row_blocks = torch.arange(begin, end, ROW_BLOCK, device=keys.device)[:, None]
            is_causal = best * ROW_BLOCK < row_blocks + ROW_BLOCK + prefix
            best = torch.where(is_causal, best, -1)
            parts.append(F.pad(best, (0, width - best.shape[1]), value=-1))
        return torch.cat(parts).to(torch.int32)


def _block_mass(queries: Tensor, keys: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Attention of each row block to each key block, [row blocks, key blocks]; the last query is at
    the position of the last key."""
    rows, columns = len(queries), len(keys)
    logits = (queries @ keys.T).mul_(scale).sub_(lse[:, None])
    is_later = torch.ones(rows, rows, dtype=torch.bool, device=keys.device).triu_(1)
    logits[:, columns - rows :].masked_fill_(is_later, -math.inf)
    probabilities = F.pad(logits.exp_(), (0, -columns % ROW_BLOCK, 0, -rows % ROW_BLOCK))
    height, width = probabilities.shape
    tiles = probabilities.view(height // ROW_BLOCK, ROW_BLOCK, width // ROW_BLOCK, ROW_BLOCK)
    return tiles.sum((1, 3))
