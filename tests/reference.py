"""Float64 oracle of every op: the boolean set of attended pairs by brute force, then softmax.

    mask   = head_mask(pattern, q, k, ...)        [q_len, kv_len], from the definition
    out    = softmax(scale * q k^T over the mask) v
    lse    = ln sum exp(scale * q k^T over the mask)

One sequence, one head per call; tensors are [length, head_dim]. Nothing here knows how a kernel
walks its tiles. Query row r sits at position i = r + (kv_len - q_len), o = i - j is the offset of a
pair, and row blocks of 64 start at query row 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

ROW_BLOCK = 64
MIN_VERTICAL, MIN_SLASH = 30, 50  # lines an estimation keeps at least
FORCED_COLUMNS, FORCED_OFFSETS = 30, 100  # lines that rank before all others


@dataclass(frozen=True)
class Dense:
    """Every key."""


@dataclass(frozen=True)
class AShape:
    """The first `sink` keys and the `window` latest."""

    sink: int
    window: int


@dataclass(frozen=True)
class TriShape:
    """A-shape; the last `last` queries see every key."""

    sink: int
    window: int
    last: int


@dataclass(frozen=True)
class VerticalSlash:
    """Lines estimated from the prompt."""

    vertical_size: int
    slash_size: int


@dataclass(frozen=True)
class Lines:
    """Lines given by the caller; in any order, repeated, -1 for no entry."""

    vertical: tuple[int, ...]
    slash: tuple[int, ...]

    def within(self, kv_len: int) -> Lines:
        """The same lists without the entries a sequence of this length has no key for."""
        return Lines(
            tuple(v for v in self.vertical if v < kv_len),
            tuple(s for s in self.slash if s < kv_len),
        )


@dataclass(frozen=True)
class BlockSparse:
    """The `top_k` best key blocks of every row block by mean-pooled scores."""

    top_k: int


@dataclass(frozen=True)
class Blocks:
    """Key blocks given by the caller: row block m has the list `rows[m % len(rows)]`."""

    rows: tuple[tuple[int, ...], ...]

    def of_row_block(self, row_block: int, kv_len: int) -> tuple[int, ...]:
        blocks = self.rows[row_block % len(self.rows)]
        return tuple(n for n in blocks if n < math.ceil(kv_len / ROW_BLOCK))


Mode: TypeAlias = Literal["cover", "exact", "reference"]
Pattern: TypeAlias = Dense | AShape | TriShape | VerticalSlash | Lines | BlockSparse | Blocks


def offsets(q_len: int, kv_len: int) -> Tensor:
    """o = i - j of every pair, [q_len, kv_len]; negative where causality forbids the pair."""
    i = torch.arange(q_len) + (kv_len - q_len)
    return i[:, None] - torch.arange(kv_len)[None, :]


def dense_mask(q_len: int, kv_len: int) -> Tensor:
    return offsets(q_len, kv_len) >= 0


def a_shape_mask(q_len: int, kv_len: int, sink: int, window: int) -> Tensor:
    o = offsets(q_len, kv_len)
    j = torch.arange(kv_len)[None, :]
    return ((j < sink) | (o < window)) & (o >= 0)


def tri_shape_mask(q_len: int, kv_len: int, sink: int, window: int, last: int) -> Tensor:
    is_last = (torch.arange(q_len) >= q_len - last)[:, None]
    return (a_shape_mask(q_len, kv_len, sink, window) | is_last) & dense_mask(q_len, kv_len)


def vertical_slash_mask(
    q_len: int, kv_len: int, vertical: Iterable[int], slash: Iterable[int], mode: Mode = "cover"
) -> Tensor:
    """Pairs that V and S (sets; -1 is no entry) let a query attend in the given mode."""
    columns = sorted({v for v in vertical if v >= 0})
    lines = sorted({s for s in slash if s >= 0})
    o = offsets(q_len, kv_len)
    mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
    if mode == "reference":
        for row_begin in range(0, q_len, ROW_BLOCK):
            rows = mask[row_begin : row_begin + ROW_BLOCK]
            tiles, loose = merged_lists(row_begin, q_len, kv_len, columns, lines)
            for tile in tiles:
                rows[:, tile : tile + ROW_BLOCK] = True
            rows[:, loose] = True
        return mask & (o >= 0)
    mask[:, columns] = True
    if mode == "exact":
        mask |= torch.isin(o, torch.tensor(lines))
    else:
        for row_begin in range(0, q_len, ROW_BLOCK):
            end = row_begin + ROW_BLOCK + (kv_len - q_len)
            for s in lines:
                mask[row_begin : row_begin + ROW_BLOCK, max(0, end - 64 - s) : max(0, end - s)] = 1
    return mask & (o >= 0)


def merged_lists(
    row_begin: int,
    q_len: int,
    kv_len: int,
    vertical: Sequence[int],
    slash: Sequence[int],
    causal: bool = True,
) -> tuple[list[int], list[int]]:
    """Starts of the 64-wide key tiles and single columns of the original implementation.

    Lines join from the farthest to the nearest: one that starts past the current range begins a
    new one, one that reaches beyond its end extends it by a whole tile. Columns are what no tile
    holds. Unlike the original, columns right of the last tile stay.
    """
    end = row_begin + ROW_BLOCK + (kv_len - q_len if causal else kv_len)
    ranges: list[tuple[int, int]] = []
    for s in sorted({s for s in slash if 0 <= s < end}, reverse=True):
        reach = max(end - s, ROW_BLOCK)
        if not ranges or reach > ranges[-1][1] + ROW_BLOCK:
            ranges.append((reach - ROW_BLOCK, reach))
        elif reach > ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + ROW_BLOCK)
    tiles = [t for first, last in ranges for t in range(first, last, ROW_BLOCK) if t < kv_len]
    columns = [
        v
        for v in sorted({v for v in vertical if 0 <= v < end})
        if not any(t <= v < t + ROW_BLOCK for t in tiles)
    ]
    return tiles, columns


def block_mask(q_len: int, kv_len: int, blocks: Sequence[Sequence[int]]) -> Tensor:
    """`blocks[m]`: key blocks of row block m."""
    mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
    for row_block, listed in enumerate(blocks):
        for n in listed:
            if n >= 0:
                mask[row_block * 64 : row_block * 64 + 64, n * 64 : n * 64 + 64] = True
    return mask & dense_mask(q_len, kv_len)


def vs_scores(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Column sums by key and diagonal sums by offset, [kv_len] each, of the probabilities of the
    last min(64, q_len) queries, in float64."""
    q_len, kv_len = q.shape[0], k.shape[0]
    rows = min(ROW_BLOCK, q_len)
    o = offsets(q_len, kv_len)[q_len - rows :]
    logits = (q[q_len - rows :].double() @ k.double().T * scale).masked_fill(o < 0, -math.inf)
    probabilities = torch.softmax(logits, dim=-1)
    probabilities = torch.where((o >= 0).any(-1, keepdim=True), probabilities, 0.0)
    diagonals = torch.zeros(kv_len, dtype=torch.float64)
    for row, row_offsets in zip(probabilities, o, strict=True):
        seen = row_offsets >= 0
        diagonals[row_offsets[seen]] += row[seen]
    return probabilities.sum(0), diagonals


def select_lines(scores: Tensor, size: int, minimum: int, forced: int) -> tuple[list[int], float]:
    """The min(len, max(size, minimum)) best lines, ascending: 0..forced-1 first, then by score,
    ties to the lowest index. Also the relative gap between the worst line taken and the best one
    left (inf where no score decided)."""
    count = min(len(scores), max(size, minimum))
    first = list(range(min(forced, len(scores))))
    if count <= len(first) or count == len(scores):
        return list(range(count)), math.inf
    rest = scores[len(first) :].tolist()
    ranked = sorted(range(len(rest)), key=lambda n: (-rest[n], n))
    take = count - len(first)
    worst, best_left = rest[ranked[take - 1]], rest[ranked[take]]
    gap = (worst - best_left) / max(abs(worst), 1e-300)
    return sorted(first + [len(first) + n for n in ranked[:take]]), gap


def estimate_lines(
    q: Tensor, k: Tensor, pattern: VerticalSlash, scale: float
) -> tuple[list[int], list[int], float]:
    """V and S as MInference's algorithm 2 estimates them, and the smaller gap of the two."""
    columns, diagonals = vs_scores(q, k, scale)
    v, v_gap = select_lines(columns, pattern.vertical_size, MIN_VERTICAL, FORCED_COLUMNS)
    s, s_gap = select_lines(diagonals, pattern.slash_size, MIN_SLASH, FORCED_OFFSETS)
    return v, s, min(v_gap, s_gap)


def block_top_k(q: Tensor, k: Tensor, top_k: int) -> tuple[list[list[int]], float]:
    """The best key blocks of every row block, and the smallest gap (relative to the largest score)
    between one taken and one left."""
    q_len, kv_len = q.shape[0], k.shape[0]
    key_means = [k[n : n + ROW_BLOCK].double().mean(0) for n in range(0, kv_len, ROW_BLOCK)]
    chosen: list[list[int]] = []
    smallest_gap = math.inf
    for row_begin in range(0, q_len, ROW_BLOCK):
        row_end = min(row_begin + ROW_BLOCK, q_len)
        query_mean = q[row_begin:row_end].double().mean(0)
        last_position = row_end - 1 + (kv_len - q_len)
        scores = [
            float(query_mean @ mean) for n, mean in enumerate(key_means) if 64 * n <= last_position
        ]
        ranked = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        chosen.append(sorted(ranked[:top_k]))
        if 0 < top_k < len(ranked):
            gap = scores[ranked[top_k - 1]] - scores[ranked[top_k]]
            smallest_gap = min(smallest_gap, gap / max(1e-300, *map(abs, scores)))
    return chosen, smallest_gap


def head_mask(
    pattern: Pattern,
    q: Tensor,
    k: Tensor,
    scale: float,
    mode: Mode = "cover",
    estimate_every: int = 0,
) -> tuple[Tensor, float]:
    """Attended pairs [q_len, kv_len] of one head, and by how much the closest decision of an
    estimation was taken (inf where nothing was estimated)."""
    q_len, kv_len = q.shape[0], k.shape[0]
    match pattern:
        case Dense():
            return dense_mask(q_len, kv_len), math.inf
        case AShape():
            return a_shape_mask(q_len, kv_len, pattern.sink, pattern.window), math.inf
        case TriShape():
            sizes = (pattern.sink, pattern.window, pattern.last)
            return tri_shape_mask(q_len, kv_len, *sizes), math.inf
        case Lines():
            lines = pattern.within(kv_len)
            return vertical_slash_mask(q_len, kv_len, lines.vertical, lines.slash, mode), math.inf
        case Blocks():
            count = math.ceil(q_len / ROW_BLOCK)
            blocks = [pattern.of_row_block(m, kv_len) for m in range(count)]
            return block_mask(q_len, kv_len, blocks), math.inf
        case BlockSparse():
            chosen, gap = block_top_k(q, k, pattern.top_k)
            return block_mask(q_len, kv_len, chosen), gap
        case VerticalSlash():
            mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
            smallest_gap = math.inf
            for begin in range(0, q_len, estimate_every or max(q_len, 1)):
                end = min(begin + (estimate_every or q_len), q_len)
                keys = end + (kv_len - q_len)
                v, s, gap = estimate_lines(q[begin:end], k[:keys], pattern, scale)
                mask[begin:end, :keys] = vertical_slash_mask(end - begin, keys, v, s, mode)
                smallest_gap = min(smallest_gap, gap)
            return mask, smallest_gap


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [q_len, head_dim] and lse [q_len] in float64. A row without keys: 0 and -inf."""
    logits = (q.double() @ k.double().T).mul_(scale).masked_fill_(~mask, -math.inf)
    lse = torch.logsumexp(logits, dim=-1)
    has_keys = lse > -math.inf
    weights = logits.sub_(torch.where(has_keys, lse, 0.0)[:, None]).exp_()
    return weights @ v.double(), lse


def attention_low_precision(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The same formula as plain PyTorch computes it in the tensors' own type: matmuls and
    probabilities in that type, softmax in fp32. The lse is that of fp32 throughout, because a
    kernel sums exact products and rounds no probability before it adds it up."""
    hidden = ~mask
    logits = (q @ k.T).float().mul_(scale).masked_fill_(hidden, -math.inf)
    weights = torch.where(mask.any(-1, keepdim=True), torch.softmax(logits, dim=-1), 0.0)
    if q.dtype != torch.float32:
        logits = (q.float() @ k.float().T).mul_(scale).masked_fill_(hidden, -math.inf)
    return weights.to(q.dtype) @ v, torch.logsumexp(logits, dim=-1)


def attention_float8(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The same for values of float8 times their scales: scores in fp32, probabilities and values in
    fp16, the output in bf16."""
    logits = (q.float() @ k.float().T).mul_(scale).masked_fill_(~mask, -math.inf)
    weights = torch.where(mask.any(-1, keepdim=True), torch.softmax(logits, dim=-1), 0.0)
    out = weights.half().float() @ v.half().float()
    return out.bfloat16(), torch.logsumexp(logits, dim=-1)
