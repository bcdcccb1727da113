"""Fake kernels: shapes, dtypes and strides of every result, without data (torch.compile, export).

They mirror cpp/torch exactly and must: compiled code relies on the strides they promise. Sizes may
be symbolic, so nothing here branches on a length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.library import register_fake

from . import _library

_library.load()

ATTENTION_OPS = (
    "dense_attention",
    "a_shape_attention",
    "tri_shape_attention",
    "vs_attention",
    "vs_attention_with_index",
    "block_sparse_attention",
    "block_sparse_attention_with_index",
    "sparse_attention",
)

NUM_STATS = 9  # fields of PlanStats
MIN_VERTICAL, MIN_SLASH = 30, 50  # lines an estimated list holds at least, if there are that many
BLOCK = 64

# torch.ops passes int[1] on as a list; a single int becomes a list of one.
_Sizes: TypeAlias = Sequence[int]


def empty_out(q: Tensor, packed: bool) -> Tensor:
    """`out` for this q: packed as q, else [B, H, S, D] over memory contiguous as [B, S, H, D];
    bfloat16 for float8."""
    dtype = torch.bfloat16 if q.dtype == torch.float8_e4m3fn else q.dtype
    if packed:
        return q.new_empty(q.shape, dtype=dtype)
    batch, heads, seq, dim = q.shape
    return q.new_empty((batch, seq, heads, dim), dtype=dtype).transpose(1, 2)


def empty_lse(q: Tensor, packed: bool) -> Tensor:
    """`lse` for this q: float32 [H, T] if packed, else [B, H, S]."""
    shape = (q.shape[1], q.shape[0]) if packed else q.shape[:3]
    return q.new_empty(shape, dtype=torch.float32)


def _check_inputs(packed: bool, inputs: Sequence[Tensor], others: Iterable[Any] = ()) -> None:
    """Rank and device: without them a fake result would promise what no kernel computes."""
    rank = 3 if packed else 4
    for name, tensor in zip("qkv", inputs, strict=False):
        torch._check(
            tensor.dim() == rank,
            lambda name=name, tensor=tensor: (
                f"{name} has {tensor.dim()} dimensions; {'with' if packed else 'without'} "
                f"cu_seqlens_q and cu_seqlens_kv it must have {rank}"
            ),
        )
    device = inputs[0].device
    for tensor in (*inputs, *others):
        if isinstance(tensor, Tensor):
            torch._check(
                tensor.device == device,
                lambda tensor=tensor: (
                    f"an argument is on device {tensor.device} and q on {device}; all tensors of a "
                    "call must be on one device"
                ),
            )


def _attention(
    q: Tensor, k: Tensor, v: Tensor, *args: Any, cu_seqlens_q: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    packed = cu_seqlens_q is not None
    _check_inputs(packed, (q, k, v), (*args, cu_seqlens_q, *kwargs.values()))
    return empty_out(q, packed), empty_lse(q, packed)


def _attention_out(
    q: Tensor, k: Tensor, v: Tensor, *args: Any, cu_seqlens_q: Tensor | None = None, **kwargs: Any
) -> None:
    _check_inputs(cu_seqlens_q is not None, (q, k, v), (*args, cu_seqlens_q, *kwargs.values()))


for _name in ATTENTION_OPS:
    register_fake(f"minference::{_name}", _attention)
    register_fake(f"minference::{_name}.out", _attention_out)


def _sequences_and_keys(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, others: Iterable[Any]
) -> tuple[int, int]:
    _check_inputs(cu_seqlens_q is not None, (q, k), (cu_seqlens_q, *others))
    if cu_seqlens_q is None:
        return q.shape[0], k.shape[2]
    return cu_seqlens_q.shape[0] - 1, k.shape[0]


@register_fake("minference::estimate_vs_index")
def _estimate_vs_index(
    q: Tensor,
    k: Tensor,
    vertical_size: _Sizes,
    slash_size: _Sizes,
    *,
    cu_seqlens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    sequences, keys = _sequences_and_keys(q, k, cu_seqlens_q, kwargs.values())

    def lines(sizes: _Sizes, at_least: int) -> Tensor:
        count = torch.sym_min(keys, max(at_least, *sizes))
        return q.new_empty((sequences, q.shape[1], count), dtype=torch.int32)

    return lines(vertical_size, MIN_VERTICAL), lines(slash_size, MIN_SLASH)


@register_fake("minference::estimate_vs_scores")
def _estimate_vs_scores(
    q: Tensor, k: Tensor, *, cu_seqlens_q: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    sequences, keys = _sequences_and_keys(q, k, cu_seqlens_q, kwargs.values())
    shape = (sequences, q.shape[1], keys)
    return q.new_empty(shape, dtype=torch.float32), q.new_empty(shape, dtype=torch.float32)


@register_fake("minference::plan_stats")
def _plan_stats(
    q: Tensor,
    k: Tensor,
    head_patterns: Sequence[int],
    *,
    cu_seqlens_q: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    sequences, _ = _sequences_and_keys(q, k, cu_seqlens_q, kwargs.values())
    return q.new_empty((sequences, q.shape[1], NUM_STATS), dtype=torch.int64)


@register_fake("minference::convert_vertical_slash_indexes")
def _convert_vertical_slash_indexes(
    q_seqlens: Tensor,
    kv_seqlens: Tensor,
    vertical_indexes: Tensor,
    slash_indexes: Tensor,
    context_size: int,
    block_size_M: int = BLOCK,
    block_size_N: int = BLOCK,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, num_vertical = vertical_indexes.shape
    counts = (batch, heads, (context_size + BLOCK - 1) // BLOCK)
    return (
        vertical_indexes.new_empty(counts),
        vertical_indexes.new_empty((*counts, slash_indexes.shape[2])),
        vertical_indexes.new_empty(counts),
        vertical_indexes.new_empty((*counts, num_vertical)),
    )
