"""True probabilities of one head, a strip of keys at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WIDTH = 512  # keys of a strip: 256 MiB of float32 for 128K queries


def strips(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, width: int = WIDTH
) -> Iterator[tuple[int, Tensor]]:
    """Dense causal attention of one head, column by column.

    Args:
        q, k: `[length, head_dim]` of the same prompt.
        lse: float32 `[length]`, natural logarithm of each query's softmax sum.
        scale: of the products.
        width: keys of a strip.

    Yields:
        The first key, and float32 `[length - first, keys]`: probabilities of the queries from that
        key on; those before it attend none of these keys. 0 above the diagonal.
    """
    length = q.shape[0]
    for first in range(0, length, width):
        keys = k[first : first + width].float()
        scores = (q[first:].float() @ keys.T).mul_(scale).sub_(lse[first:, None])
        probability = scores.exp_()
        probability[: len(keys)].tril_()  # exp of what lies above may be inf, which tril_ drops
        yield first, probability


def column_mass(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> Tensor:
    """float64 `[length]`: each key's share of all attention, which sums to 1; arguments as in
    `strips`."""
    # Sums in float64 would hold a strip in it; sums over a strip's rows are exact enough without.
    mass = [part.sum(0).double() for _, part in strips(q, k, lse, scale)]
    return torch.cat(mass) / q.shape[0]


def rows(q: Tensor, k: Tensor, scale: float, queries: Tensor) -> Tensor:
    """float32 `[queries, length]`: probabilities of some queries, int64 `[n]`."""
    scores = (q[queries].float() @ k.float().T) * scale
    future = torch.arange(k.shape[0], device=q.device) > queries[:, None]
    return scores.masked_fill_(future, -torch.inf).softmax(dim=-1)
