"""Vertical/slash lines without attention: estimate them, or convert them to the lists of others.

Conventions are those of ops.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _library
from .patterns import size_list

_library.load()
_ops = torch.ops.minference


def estimate_vs_index(
    q: Tensor,
    k: Tensor,
    vertical_size: int | Sequence[int],
    slash_size: int | Sequence[int],
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The lines `vs_attention` would use (section 3.2, algorithm 2).

    Args:
        q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale, k_scale: as in
            `dense_attention`.
        vertical_size: as in `vs_attention`.
        slash_size: as in `vs_attention`.

    Returns:
        vertical_idx: int32 `[B, H, min(S_kv, max(30, vertical sizes))]`, columns in ascending
            order, then -1. Packed: `[N, H, min(T_kv, ...)]`.
        slash_idx: int32 `[B, H, min(S_kv, max(50, slash sizes))]`, offsets, likewise.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    result: tuple[Tensor, Tensor] = _ops.estimate_vs_index.default(
        q,
        k,
        size_list(vertical_size),
        size_list(slash_size),
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        q_scale=q_scale,
        k_scale=k_scale,
    )
    return result


def estimate_vs_scores(
    q: Tensor,
    k: Tensor,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scores that rank lines in `vs_attention`, before any line is forced or selected.

    Args:
        q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale, k_scale: as in
            `dense_attention`.

    Returns:
        column_scores: float32 `[B, H, S_kv]` (packed: `[N, H, T_kv]`): per key, the sum of the
            probabilities of the last min(64, q_len) queries. 0 past the keys of a sequence.
        slash_scores: same shape, per offset o.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    result: tuple[Tensor, Tensor] = _ops.estimate_vs_scores.default(
        q,
        k,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        q_scale=q_scale,
        k_scale=k_scale,
    )
    return result


def convert_vertical_slash_indexes(
    q_seqlens: Tensor,
    kv_seqlens: Tensor,
    vertical_indexes: Tensor,
    slash_indexes: Tensor,
    context_size: int,
    block_size_M: int = 64,
    block_size_N: int = 64,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lines as the block and column lists of the original implementation (vLLM's function).

    For every row block: the starts of 64-wide key tiles, slash ranges merged greedily from the
    farthest line, and the single columns outside of them. Unlike the original it keeps columns
    right of the last tile and counts duplicates once. The attention ops do not need it.

    Args:
        q_seqlens: int32 `[B]`, queries of each row, at most `context_size`.
        kv_seqlens: int32 `[B]`, keys of each row.
        vertical_indexes: int32 `[B, H, n_v]`, any order, -1 is no entry.
        slash_indexes: int32 `[B, H, n_s]`, likewise.
        context_size: the longest row, tokens >= 0. R = ceil(context_size / 64).
        block_size_M: 64.
        block_size_N: 64.
        causal: False: every key precedes every query, offsets are kv_len + r - j.

    Returns:
        block_count: int32 `[B, H, R]`.
        block_offset: int32 `[B, H, R, n_s]`, first keys of tiles, ascending; 0 past the count.
        column_count: int32 `[B, H, R]`.
        column_index: int32 `[B, H, R, n_v]`, keys, ascending; 0 past the count.

    Raises:
        RuntimeError: an argument breaks this contract.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _ops.convert_vertical_slash_indexes.default(
        q_seqlens,
        kv_seqlens,
        vertical_indexes,
        slash_indexes,
        context_size,
        block_size_M,
        block_size_N,
        causal,
    )
    return result
