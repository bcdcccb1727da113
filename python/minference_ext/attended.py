"""Which keys each query of a head attends, as a boolean matrix: for pictures and closer looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops import plan_stats, sparse_attention
from .patterns import HeadPattern
from .vs_index import estimate_vs_index

# The least scale that the ops take: the probabilities of a row are equal, blocks keep their order.
_FLAT = 2.0**-100


def attended_mask(q: Tensor, k: Tensor, pattern: HeadPattern) -> Tensor:
    """The pairs that `sparse_attention` gives to the softmax of one head, as it shows them itself.

    Keys whose value is a unit vector leave their mark in the output of every query that attends
    them.

    Args:
        q: `[q_len, head_dim]`.
        k: `[kv_len, head_dim]`, kv_len >= q_len >= 1; dtype of q.
        pattern: without lists of indices.

    Returns:
        bool `[q_len, kv_len]`.

    Raises:
        RuntimeError: as `dense_attention`; a pattern that needs lists of indices.
    """
    (q_len, head_dim), kv_len = q.shape, k.shape[0]
    q, k = q[None, None], k[None, None]
    lines: dict[str, Any] = {}
    if bool(plan_stats(q, k, [pattern]).is_dense):
        pattern = HeadPattern.dense()
    elif pattern.kind == "vertical_slash":  # estimated from true probabilities, not from flat ones
        lines["vertical_idx"], lines["slash_idx"] = estimate_vs_index(q, k, *pattern.sizes)
        pattern = HeadPattern.vertical_slash_index()
    mask = torch.empty((q_len, kv_len), dtype=torch.bool, device=q.device)
    for part in mask.split(head_dim, dim=1):
        first = part.storage_offset()
        v = torch.zeros_like(k)
        v[0, 0, first : first + part.shape[1], : part.shape[1]].fill_diagonal_(1)
        out, _ = sparse_attention(q, k, v, [pattern], softmax_scale=_FLAT, **lines)
        part.copy_(out[0, 0, :, : part.shape[1]] > 0)
    return mask
