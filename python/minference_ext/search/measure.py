"""What patterns lose on one layer of a prompt, and how many lines its probability needs.

    error   ||y_c - y|| / max(||y||, r ||v||)     y: output of a head under dense attention over all
                                                  queries, y_c: with the pattern, v: its values
    recall  mean over queries of exp(lse_c - lse), the probability that the pattern keeps

r is the spacing of numbers in the type of q, k and v. It only matters to a head whose output is
smaller than the rounding of what it averages: one that rests on a first token without value, which
writes nothing. Relative to nothing, its errors would be noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex
from minference_ext.ops import dense_attention, plan_stats, sparse_attention
from minference_ext.patterns import HeadPattern
from minference_ext.vs_index import estimate_vs_scores

_ROWS = 1024  # whose float64 copies exist at a time
LINES_HOLD = 0.95  # of the probability of the last queries


@dataclass(frozen=True)
class Measured:
    """What one pattern keeps in one head."""

    error: float
    recall: float
    computed_share: float  #: pairs that the kernels multiply / pairs of causal attention


@dataclass(frozen=True)
class Lines:
    """How many lines hold 95 % of the probability of the last 64 queries; means over prompts."""

    a_shape: float  #: first columns and nearest diagonals, fewest in sum
    columns: float  #: the best columns alone
    diagonals: float  #: the best diagonals alone


@dataclass(frozen=True)
class Dense:
    """Dense attention of a layer, which every error is relative to."""

    out: Tensor  #: [1, H, length, head_dim]
    lse: Tensor  #: float32 [1, H, length]
    scale: Tensor  #: what errors are divided by, float64 [H]

    @staticmethod
    def of(layer: Layer) -> Dense:
        out, lse = dense_attention(layer.q, layer.k, layer.v, softmax_scale=layer.softmax_scale)
        return Dense(out, lse, _scale(layer, out))

    def heads(self, heads: list[int]) -> Dense:
        return Dense(self.out[:, heads], self.lse[:, heads], self.scale[heads])


def measure(
    layer: Layer, dense: Dense, index: LayerIndex, *, first_recalled: int = 0
) -> list[Measured]:
    """Runs a pattern per head and compares; one entry per query head.

    Args:
        layer: one whole prompt.
        index: with `dense_fallback` False, so that a pattern is not replaced.
        first_recalled: the recall is of this query and those after it. The error is of all.
    """
    arguments = index.arguments()
    out, lse = sparse_attention(
        layer.q, layer.k, layer.v, softmax_scale=layer.softmax_scale, **arguments
    )
    stats = plan_stats(layer.q, layer.k, softmax_scale=layer.softmax_scale, **arguments)
    errors = _norms(out, dense.out) / dense.scale
    kept = (lse - dense.lse)[0, :, first_recalled:].exp_().clamp_(max=1.0)
    shares = stats.computed_pairs[0] / stats.causal_pairs[0]
    return [
        Measured(error, recall, share)
        for error, recall, share in zip(
            errors.tolist(), kept.double().mean(-1).tolist(), shares.tolist(), strict=True
        )
    ]


def window_attention(layer: Layer, window: int) -> tuple[Tensor, float]:
    """Output of a layer whose heads attend a sliding window, and its share of the causal pairs."""
    patterns = [HeadPattern.a_shape(0, window)] * layer.num_heads
    out, _ = sparse_attention(
        layer.q, layer.k, layer.v, patterns, softmax_scale=layer.softmax_scale
    )
    stats = plan_stats(layer.q, layer.k, patterns, softmax_scale=layer.softmax_scale)
    return out, float(stats.computed_pairs[0, 0] / stats.causal_pairs[0, 0])


def rounding_error(layer: Layer) -> float:
    """Errors up to this say nothing: two roundings of the output, and a sum over all keys in
    float32, whose rounding grows with the root of their number."""
    spacing = torch.finfo(layer.q.dtype).eps
    return float(spacing + layer.k.shape[2] ** 0.5 * torch.finfo(torch.float32).eps)


def count_lines(layer: Layer) -> list[Lines]:
    """Of every query head of one prompt.

    Pairs in both the first columns and the nearest diagonals count twice. Of the last 64 queries
    these are none unless the two together span the prompt.
    """
    columns, diagonals = estimate_vs_scores(layer.q, layer.k, softmax_scale=layer.softmax_scale)
    num_queries = min(64, layer.q.shape[2])
    return [
        _lines(column.double() / num_queries, diagonal.double() / num_queries)
        for column, diagonal in zip(columns[0], diagonals[0], strict=True)
    ]


def _lines(columns: Tensor, diagonals: Tensor) -> Lines:
    """columns, diagonals: probability [length] by key and by offset, in sum 1 each."""
    none = columns.new_zeros(1)
    sinks = torch.cat((none, columns.cumsum(0)))  # of the first 0, 1, ... columns
    windows = torch.cat((none, diagonals.cumsum(0)))
    needed = torch.searchsorted(windows, LINES_HOLD - sinks)  # negative: a window of none
    sums = torch.arange(len(sinks), device=sinks.device) + needed
    return Lines(int(sums.min()), _fewest(columns), _fewest(diagonals))


def _fewest(probabilities: Tensor) -> int:
    held = probabilities.sort(descending=True).values.cumsum(0)
    return min(int((held < LINES_HOLD).sum()) + 1, len(held))


def _scale(layer: Layer, out: Tensor) -> Tensor:
    """float64 [H]; out: of dense attention."""
    of_values = _norms(layer.v).repeat_interleave(layer.num_heads // layer.v.shape[1])
    floor = torch.finfo(layer.v.dtype).eps * of_values
    return torch.maximum(_norms(out), floor).clamp_(min=torch.finfo(torch.float64).tiny)


def _norms(tensor: Tensor, other: Tensor | None = None) -> Tensor:
    """Frobenius norm of every head of [1, H, length, head_dim], or of a difference; float64 [H]."""
    squares = tensor.new_zeros(tensor.shape[1], dtype=torch.float64)
    for begin in range(0, tensor.shape[2], _ROWS):
        rows = tensor[0, :, begin : begin + _ROWS].double()
        if other is not None:
            rows -= other[0, :, begin : begin + _ROWS].double()
        squares += rows.square_().sum((1, 2))
    return squares.sqrt_()
