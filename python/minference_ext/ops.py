"""The ops as documented, typed functions; each is one call of `torch.ops.minference`. Those on
indices alone are in vs_index.py.

Conventions of all of them:

* Tensors are `[batch, heads, seq, head_dim]` with any strides whose last axis is contiguous.
  head_dim is a multiple of 8 up to 256; dtype is float32, bfloat16, float16 or float8_e4m3fn. k and
  v may have fewer heads than q: query head h reads head h // (heads of q // heads of k).
* All tensors of a call are on one device: the CPU, or an NVIDIA GPU of compute capability 8.0 or
  later if the build has CUDA kernels (`has_cuda`).
* float8_e4m3fn needs a GPU of compute capability 9.0, a head_dim that is a multiple of 16, and rows
  of q, k and v that begin at multiples of 16 bytes; `q_scale`, `k_scale` and `v_scale` are factors
  per head, and out is bfloat16. Scores are products of float8, summed in accumulators that keep
  some 14 bits, and lse with them; probabilities and values are multiplied as float16, which holds
  every float8.
* Packed sequences: with `cu_seqlens_q` and `cu_seqlens_kv`, tensors are `[tokens, heads, head_dim]`
  and sequence n holds tokens cu_seqlens[n] .. cu_seqlens[n + 1].
* Attention is causal and bottom-right aligned: query row r of a sequence sits at position
  i = r + (kv_len - q_len), q_len <= kv_len, and attends keys j <= i only. o = i - j is the offset
  of a pair. A row block is 64 query rows, counted from the first query of its sequence.
* Errors are RuntimeError with a sentence: which argument, what was found, what is allowed.
* On a GPU: no float32, and at most 256 query heads; `block_sparse` ranks up to 4,194,304 keys and
  takes up to 16,384 blocks. A call is enqueued on torch's current stream, does not wait
  (`plan_stats` does) and reads no tensor first: list entries out of range are ignored, and a
  sequence whose lengths break these rules has undefined results.
* There is no backward (see autograd.py). All functions work under torch.compile(fullgraph=True).

Patterns are those of MInference (arXiv 2407.02490).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import _C, _library
from .fake import empty_lse, empty_out
from .patterns import HeadPattern, PlanStats, Prediction, flatten, size_list

_library.load()
_ops = torch.ops.minference

SlashMode = Literal["cover", "exact", "reference"]


def _attend(
    op: Any,
    inputs: tuple[Any, ...],
    out: Tensor | None,
    lse: Tensor | None,
    cu_seqlens_q: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Runs the overload that allocates, or the one that fills `out` and `lse`."""
    if out is None and lse is None:
        result: tuple[Tensor, Tensor] = op.default(*inputs, cu_seqlens_q=cu_seqlens_q, **options)
        return result
    q, packed = inputs[0], cu_seqlens_q is not None
    out = empty_out(q, packed) if out is None else out
    lse = empty_lse(q, packed) if lse is None else lse
    if "mode" in options:  # its name in the overload that writes: cpp/torch/schema.cpp says why
        options["slash_mode"] = options.pop("mode")
    op.out(*inputs, cu_seqlens_q=cu_seqlens_q, **options, out=out, lse=lse)
    return out, lse


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention over all keys.

    Args:
        q: `[B, H, S_q, D]`, or packed `[T_q, H, D]`.
        k: `[B, H_kv, S_kv, D]`, or packed `[T_kv, H_kv, D]`; dtype of q; H is a multiple of H_kv.
        v: as k.
        softmax_scale: factor of q . k, finite and > 0; None: 1 / sqrt(D).
        first_valid_key: int32 `[B]` in 0..S_kv, for left padding: keys before it do not exist. The
            row gives what the unpadded row would: all positions, sizes and indices count from
            it. Not together with cu_seqlens.
        cu_seqlens_q: int32 `[N + 1]`, from 0 to T_q, not decreasing: packed sequences.
        cu_seqlens_kv: int32 `[N + 1]`, from 0 to T_kv; given together with cu_seqlens_q.
        out: where to write the result; shape and dtype of q (bfloat16 if that is float8), last axis
            contiguous, no overlap with q, k or v. If `out` or `lse` is given, no input may require
            grad; torch.compile wants a contiguous `out`.
        lse: where to write the log-sum-exp; float32, shape of the second result.
        reserved_multiprocessors: multiprocessors >= 0 of the GPU that attention leaves free for
            kernels that run beside it, such as communication; at least one is used. Only the
            sm_90 kernel honours it (`attention_kernel` tells which one runs).
        q_scale: float32 `[H]`, contiguous, only with float8 q, k and v: attention is that of
            q_scale[h] * q of each head h; None: 1. Not checked: it is finite and > 0, and
            softmax_scale * q_scale * k_scale is in [2^-100, 2^100].
        k_scale: float32 `[H_kv]`, likewise for k.
        v_scale: float32 `[H_kv]`, likewise for v.

    Returns:
        out: `[B, H, S_q, D]` in q's dtype (bfloat16 if that is float8), contiguous in memory as
            `[B, S_q, H, D]`; packed `[T_q, H, D]`. 0 for a row that attends no key.
        lse: float32 `[B, H, S_q]`, packed `[H, T_q]`: ln sum exp(softmax_scale * q . k) over the
            attended keys; -inf for a row that attends no key.

    Raises:
        RuntimeError: an argument breaks this contract, or this build or machine has no kernel for
            it.
    """
    return _attend(
        _ops.dense_attention,
        (q, k, v),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def a_shape_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: int,
    window: int,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the first `sink` keys and a window: j < sink or o < window.

    The A-shape pattern of MInference (section 2.2), that is StreamingLLM (arXiv 2309.17453).

    Args:
        sink: keys at the start of the sequence, tokens >= 0.
        window: keys up to and including the query's own, tokens >= 0.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.a_shape_attention,
        (q, k, v, sink, window),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def tri_shape_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: int,
    window: int,
    last: int,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A-shape attention whose last `last` queries attend every key (Tri-shape).

    Args:
        sink: as in `a_shape_attention`.
        window: as in `a_shape_attention`.
        last: dense queries at the end of each sequence, >= 0.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.tri_shape_attention,
        (q, k, v, sink, window, last),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def vs_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vertical_size: int | Sequence[int],
    slash_size: int | Sequence[int],
    *,
    mode: SlashMode = "cover",
    estimate_every: int = 0,
    dense_fallback: bool = True,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Vertical-slash attention with lines estimated from the prompt (section 3.2, algorithm 2).

    The last min(64, q_len) queries attend all keys; column sums and diagonal sums of those
    probabilities rank the lines. V holds the min(kv_len, max(vertical_size, 30)) best columns, S
    the min(kv_len, max(slash_size, 50)) best offsets; columns 0..29 and offsets 0..99 rank first,
    ties go to the lowest index. A query attends key j if j is in V or a line of S covers it.

    Args:
        vertical_size: columns per head, >= 0; an int for all query heads, or one int per query
            head.
        slash_size: diagonals per head, likewise.
        mode: which keys a line s of S lets a query attend. "cover": for the row block that starts
            at row r0, with e = r0 + 64 + (kv_len - q_len), the keys [e - 64 - s, e - s), as in the
            paper's kernel; "exact": only o == s, element by element; "reference": the greedy
            64-wide merge of the original implementation, for parity tests.
        estimate_every: 0: estimate once, from the last queries. Else a positive multiple of 64:
            each chunk of that many queries uses lines estimated from its own last 64, as if it were
            a call of its own with the keys up to its last query.
        dense_fallback: compute a head densely where its lines cost as much (mode "cover" only);
            `plan_stats` tells where.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.vs_attention,
        (q, k, v, size_list(vertical_size), size_list(slash_size)),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        mode=mode,
        estimate_every=estimate_every,
        dense_fallback=dense_fallback,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def vs_attention_with_index(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    vertical_idx: Tensor,
    slash_idx: Tensor,
    *,
    mode: SlashMode = "cover",
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Vertical-slash attention with given lines (section 3.2), e.g. of `estimate_vs_index`.

    Args:
        vertical_idx: int32 `[B, H, n]` (packed: `[N, H, n]`), columns in [0, kv_len). A set: order
            and repetition do not matter; -1 is no entry; n may be 0.
        slash_idx: int32 `[B, H, n]`, offsets in [0, kv_len), likewise. Taken as given: offset 0 is
            not added.
        mode: as in `vs_attention`.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.vs_attention_with_index,
        (q, k, v, vertical_idx, slash_idx),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        mode=mode,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the `top_k` best key blocks of each row block (section 3.2, algorithm 3).

    Row block m ranks the 64-wide key blocks n that hold a key it may attend by
    mean(q rows of m) . mean(k rows of n), ties to the lowest n.

    Args:
        top_k: key blocks per row block, >= 1.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.block_sparse_attention,
        (q, k, v, top_k),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def block_sparse_attention_with_index(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_idx: Tensor,
    *,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the given 64-wide key blocks of each row block.

    Args:
        block_idx: int32 `[B, H, R, n]` (packed: `[N, H, R, n]`), key blocks in
            [0, ceil(kv_len / 64)) of each row block; R >= ceil(q_len / 64). A set; -1 is no entry;
            n may be 0. A block that causality hides contributes nothing.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.block_sparse_attention_with_index,
        (q, k, v, block_idx),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_patterns: Sequence[HeadPattern],
    *,
    vertical_idx: Tensor | None = None,
    slash_idx: Tensor | None = None,
    block_idx: Tensor | None = None,
    mode: SlashMode = "cover",
    estimate_every: int = 0,
    dense_fallback: bool = True,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    reserved_multiprocessors: int = 0,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One attention layer whose query heads each have their own pattern.

    Args:
        head_patterns: one per query head.
        vertical_idx: as in `vs_attention_with_index`, all heads; read for heads of
            `HeadPattern.vertical_slash_index` and needed if there is one.
        slash_idx: likewise.
        block_idx: as in `block_sparse_attention_with_index`, all heads; read for heads of
            `HeadPattern.block_index` and needed if there is one.
        mode, estimate_every, dense_fallback: as in `vs_attention`.
        q, k, v, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, out, lse,
            reserved_multiprocessors, q_scale, k_scale, v_scale: as in `dense_attention`.

    Returns:
        (out, lse) as `dense_attention`.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    return _attend(
        _ops.sparse_attention,
        (q, k, v, flatten(head_patterns)),
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        vertical_idx=vertical_idx,
        slash_idx=slash_idx,
        block_idx=block_idx,
        mode=mode,
        estimate_every=estimate_every,
        dense_fallback=dense_fallback,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        reserved_multiprocessors=reserved_multiprocessors,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def plan_stats(
    q: Tensor,
    k: Tensor,
    head_patterns: Sequence[HeadPattern],
    *,
    vertical_idx: Tensor | None = None,
    slash_idx: Tensor | None = None,
    block_idx: Tensor | None = None,
    mode: SlashMode = "cover",
    estimate_every: int = 0,
    dense_fallback: bool = True,
    softmax_scale: float | None = None,
    first_valid_key: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
) -> PlanStats:
    """What `sparse_attention` with these arguments would compute: estimates and plans only.

    Args: as `sparse_attention`. With `estimate_every` pairs are summed over the
            chunks of queries, the other numbers are of the last chunk.

    Returns:
        Numbers per sequence and head. On a GPU the call waits for them.

    Raises:
        RuntimeError: as `dense_attention`.
    """
    stats: Tensor = _ops.plan_stats.default(
        q,
        k,
        flatten(head_patterns),
        vertical_idx=vertical_idx,
        slash_idx=slash_idx,
        block_idx=block_idx,
        mode=mode,
        estimate_every=estimate_every,
        dense_fallback=dense_fallback,
        softmax_scale=softmax_scale,
        first_valid_key=first_valid_key,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        q_scale=q_scale,
        k_scale=k_scale,
    )
    return PlanStats(*stats.unbind(-1))


def predict(pattern: HeadPattern, q_len: int, kv_len: int) -> Prediction:
    """Whether a head with this pattern is cheaper dense, by the cost model `sparse_attention` uses.

    Args:
        pattern: of one head.
        q_len: queries of the sequence, 0 <= q_len <= kv_len.
        kv_len: keys of the sequence.

    Returns:
        The decision and both costs.

    Raises:
        ValueError: an argument is out of range.
    """
    return Prediction(**_C.predict(pattern.row[0], pattern.sizes, q_len, kv_len))
