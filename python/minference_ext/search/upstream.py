"""The search that the code of microsoft/MInference runs, to compare with.

Its score is the attention recall inside a token-level mask: the probability that the mask keeps,
mean over the queries from 2500 on (of a prompt shorter than 5000: over its later half). Tile
rounding, values and cost are not looked at, and the winner is rewritten: stream_llm to
vertical_slash(100,800), block_sparse to vertical_slash(1000,6096).

Recalls come from log-sum-exps of the kernels, exp(lse_mask - lse_dense), so no N x N matrix is
made. Two things differ from the original: blocks are 64 keys by 64 queries in place of 32 by 32,
the width the kernels have, an eighth of the prompt's blocks per row block either way; and a recall
is of float32 sums, where the original sums probabilities in the model's type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex
from minference_ext.patterns import HeadPattern
from minference_ext.vs_index import estimate_vs_scores

from .choose import Candidate
from .measure import Dense, measure

STREAM_LLM = HeadPattern.a_shape(100, 800)
VERTICAL_SLASH = (
    HeadPattern.vertical_slash(30, 800),
    HeadPattern.vertical_slash(100, 750),
    HeadPattern.vertical_slash(500, 700),
    HeadPattern.vertical_slash(3500, 100),
)
_REWRITTEN = {
    "a_shape": HeadPattern.vertical_slash(100, 800),
    "block_sparse": HeadPattern.vertical_slash(1000, 6096),
}
_BLOCK_SHARE = 8  # one block of so many
_FORCED = 30  # first columns, and nearest diagonals
_FIRST_SCORED = 2500


def candidates(layer: Layer, dense: Dense) -> list[list[Candidate]]:
    """Every candidate of every query head; their recall is the score."""
    length = layer.k.shape[2]
    first = min(_FIRST_SCORED, length // 2)
    top_k = max(1, math.ceil(length / 64) // _BLOCK_SHARE)
    wanted = [STREAM_LLM, *VERTICAL_SLASH, HeadPattern.block_sparse(top_k)]
    columns, diagonals = _ranked_lines(layer)
    per_candidate = []
    for pattern in wanted:
        index = _index(pattern, layer.num_heads, columns, diagonals)
        measured = measure(layer, dense, index, first_recalled=first)
        per_candidate.append(
            [Candidate(pattern, one.error, one.recall, one.computed_share) for one in measured]
        )
    return [list(of_head) for of_head in zip(*per_candidate, strict=True)]


def choose(of_head: list[Candidate]) -> tuple[HeadPattern, float, str]:
    """What is written for a head, the winner's score, and why; ties go to the first candidate."""
    winner = max(of_head, key=lambda candidate: candidate.recall)
    written = _REWRITTEN.get(winner.pattern.kind, winner.pattern)
    reason = "highest recall"
    if written != winner.pattern:
        sizes = ",".join(map(str, winner.pattern.sizes))
        name = "stream_llm" if winner.pattern.kind == "a_shape" else winner.pattern.kind
        reason += f" for {name}({sizes}), which is rewritten"
    return written, winner.recall, reason


def _ranked_lines(layer: Layer) -> tuple[Tensor, Tensor]:
    """Columns and offsets, best first, int32 [1, H, length] each; ties to the lowest."""
    ranked = []
    for scores in estimate_vs_scores(layer.q, layer.k, softmax_scale=layer.softmax_scale):
        scores[..., :_FORCED] = math.inf
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        ranked.append(order.to(torch.int32))
    return ranked[0], ranked[1]


def _index(pattern: HeadPattern, heads: int, columns: Tensor, diagonals: Tensor) -> LayerIndex:
    if pattern.kind == "a_shape":  # the original's band reaches one key farther: o <= window
        sink, window = pattern.sizes
        pattern = HeadPattern.a_shape(sink, window + 1)
    if pattern.kind != "vertical_slash":
        return LayerIndex((pattern,) * heads, dense_fallback=False)
    num_columns, num_diagonals = pattern.sizes
    return LayerIndex(
        (HeadPattern.vertical_slash_index(),) * heads,
        vertical_idx=columns[..., :num_columns].contiguous(),
        slash_idx=diagonals[..., :num_diagonals].contiguous(),
        mode="exact",
        dense_fallback=False,
    )
