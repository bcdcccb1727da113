"""Which keys each query of a head attends, as a boolean matrix: for pictures and closer looks.

The meaning is that of cpp/include/minference/sparse_attention.h, mode "cover", for one sequence
without padding. A head that the cost model computes densely attends everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import plan_stats
from .patterns import HeadPattern
from .vs_index import estimate_vs_index

ROW_BLOCK = 64


def attended_mask(q: Tensor, k: Tensor, pattern: HeadPattern) -> Tensor:
    """The pairs that `sparse_attention` gives to the softmax of one head.

    Args:
        q: `[q_len, head_dim]`.
        k: `[kv_len, head_dim]`, kv_len >= q_len >= 1; dtype of q.
        pattern: without lists of indices.

    Returns:
        bool `[q_len, kv_len]`, on the CPU.

    Raises:
        RuntimeError: as `dense_attention`; a pattern that needs lists of indices.
    """
    q_len, kv_len = q.shape[0], k.shape[0]
    position = torch.arange(q_len)[:, None] + (kv_len - q_len)
    key = torch.arange(kv_len)[None, :]
    offset = position - key  # [q_len, kv_len]
    causal = offset >= 0
    one_head = (q[None, None], k[None, None])
    if bool(plan_stats(*one_head, [pattern]).is_dense):
        return causal
    match pattern.kind:
        case "dense":
            return causal
        case "a_shape" | "tri_shape":
            sink, window, *last = pattern.sizes
            mask = (key < sink) | (offset < window)
            if last:
                mask |= position >= kv_len - last[0]
        case "vertical_slash":
            vertical, slash = estimate_vs_index(*one_head, *pattern.sizes)
            mask = _lines(vertical[0, 0].cpu(), slash[0, 0].cpu(), position, key)
        case _:
            mask = _best_blocks(q.cpu(), k.cpu(), pattern.sizes[0])
    return mask & causal


def _lines(vertical: Tensor, slash: Tensor, position: Tensor, key: Tensor) -> Tensor:
    """Columns, and the cover of diagonals: for the row block that ends at position e, exclusive,
    line s covers the keys from e - 64 - s up to e - s."""
    q_len, kv_len = position.shape[0], key.shape[1]
    row_block_end = position[0] + (torch.arange(q_len) // ROW_BLOCK + 1)[:, None] * ROW_BLOCK
    covered = torch.zeros(kv_len + 2 * ROW_BLOCK, dtype=torch.bool)  # by distance from e
    for piece in range(1, ROW_BLOCK + 1):
        covered[slash[slash >= 0] + piece] = True
    is_column = torch.zeros(kv_len, dtype=torch.bool)
    is_column[vertical[vertical >= 0]] = True
    return covered[(row_block_end - key).clamp(min=0)] | is_column


def _best_blocks(q: Tensor, k: Tensor, top_k: int) -> Tensor:
    """The top_k key blocks of each row block by the product of their means."""
    q_len, kv_len = q.shape[0], k.shape[0]
    query_means = torch.stack([rows.double().mean(0) for rows in q.split(ROW_BLOCK)])
    key_means = torch.stack([rows.double().mean(0) for rows in k.split(ROW_BLOCK)])
    scores = query_means @ key_means.T  # [row blocks, key blocks]
    last_row = (torch.arange(len(query_means)) * ROW_BLOCK + ROW_BLOCK - 1).clamp(max=q_len - 1)
    first_key = torch.arange(len(key_means)) * ROW_BLOCK
    is_hidden = first_key[None, :] > (last_row + kv_len - q_len)[:, None]
    order = scores.masked_fill(is_hidden, -torch.inf).sort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(is_hidden)
    chosen.scatter_(1, order.indices[:, :top_k], True)
    row_block, key_block = torch.arange(q_len) // ROW_BLOCK, torch.arange(kv_len) // ROW_BLOCK
    return chosen[row_block][:, key_block]
