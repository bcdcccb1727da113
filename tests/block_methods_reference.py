"""FlexPrefill, XAttention and the best blocks by definition: float64, one head per call, loops.

Blocks and groups count from key 0; a query belongs to the block of its position. Every decision is
taken with a margin: where a score lies so close to a bound or to its neighbour that rounding
could turn the decision, `is_clear` of the query blocks concerned is False.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests import reference


@dataclass(frozen=True)
class Selection:
    """Key blocks of each query block, from the block of the first query on."""

    block_size: int
    first_block: int
    blocks: list[set[int]]
    is_clear: list[bool]
    is_query_aware: bool = False  # FlexPrefill's

    def pairs(self, q_len: int, kv_len: int) -> tuple[Tensor, Tensor]:
        """Attended pairs [q_len, kv_len], and whether those of a query are clear [q_len]. The 64
        queries of a row block attend what any of their query blocks selects."""
        mask = torch.zeros(q_len, kv_len, dtype=torch.bool)
        is_clear = torch.ones(q_len, dtype=torch.bool)
        for begin in range(0, q_len, 64):
            end = min(begin + 64, q_len)
            positions = range(begin + kv_len - q_len, end + kv_len - q_len)
            for query_block in {position // self.block_size for position in positions}:
                row = query_block - self.first_block
                is_clear[begin:end] &= self.is_clear[row]
                for block in self.blocks[row]:
                    keys = slice(block * self.block_size, (block + 1) * self.block_size)
                    mask[begin:end, keys] = True
        return mask & reference.dense_mask(q_len, kv_len), is_clear


def _probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Dense causal attention, [q_len, kv_len]."""
    is_causal = reference.dense_mask(len(q), len(k))
    logits = (q.double() @ k.double().T * scale).masked_fill(~is_causal, -math.inf)
    return torch.softmax(logits, dim=1)


def _means(rows: Tensor, first: int, size: int) -> list[Tensor]:
    """Mean of the rows of each block; row 0 is at position `first`."""
    blocks: dict[int, list[Tensor]] = {}
    for position, row in enumerate(rows.double(), first):
        blocks.setdefault(position // size, []).append(row)
    return [torch.stack(members).mean(0) for _, members in sorted(blocks.items())]


def _top(scores: Sequence[float], count: int, tolerance: float) -> tuple[set[int], bool]:
    """The `count` largest, ties to the lowest index, and whether the last of them is clear."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    is_clear = True
    if 0 < count < len(order):
        worst, best_left = scores[order[count - 1]], scores[order[count]]
        is_clear = worst == math.inf or worst - best_left > tolerance * worst
    return set(order[:count]), is_clear


# ---- FlexPrefill ---------------------------------------------------------------------------------


def flexprefill(
    q: Tensor,
    k: Tensor,
    scale: float,
    gamma: float,
    tau: float,
    min_budget: int | None,
    max_budget: int | None,
    size: int,
    tolerance: float,
) -> Selection | None:
    """What one head attends; None: everything."""
    q_len, kv_len = len(q), len(k)
    least = math.ceil((min_budget or 1) / size)
    if kv_len <= max(2 * size, least * size):
        return None
    count = math.ceil(kv_len / size)
    first_block = (kv_len - q_len) // size

    last = min(size, q_len)
    vertical = [0.0] * kv_len
    slash = [0.0] * kv_len
    rows = _probabilities(q[q_len - last :], k, scale).tolist()
    for row, probabilities in enumerate(rows):
        position = kv_len - last + row
        for key in range(position + 1):
            vertical[key] += probabilities[key] / last
            slash[position - key] += probabilities[key] / last

    vertical_blocks = [sum(vertical[n * size : (n + 1) * size]) for n in range(count)]
    slash_blocks = [0.0] * count
    for offset, value in enumerate(slash):
        slash_blocks[count - 1 - (kv_len - 1 - offset) // size] += value

    key_means = _means(k, 0, size)
    pooled = q[q_len - last :].double().mean(0)
    estimate = torch.softmax(torch.stack([pooled @ mean * scale for mean in key_means]), 0).tolist()
    distance = math.sqrt(max(0.0, _divergence(estimate, vertical_blocks)))
    is_query_aware = distance < tau
    is_clear = abs(distance - tau) > tolerance

    numbers = []
    for line in (vertical, slash):
        found = {_cover(line, gamma + shift) // 128 + 1 for shift in (-tolerance, 0.0, tolerance)}
        is_clear &= is_query_aware or len(found) == 1
        number = max(_cover(line, gamma) // 128 + 1, least)
        number = min(number, count, math.ceil((max_budget or 2**31) / size))
        numbers.append(least if is_query_aware else number)

    columns, is_vertical_clear = _top([math.inf, *vertical_blocks[1:]], numbers[0], tolerance)
    diagonals, is_slash_clear = _top([math.inf, *slash_blocks[1:]], numbers[1], tolerance)
    is_clear &= is_vertical_clear and is_slash_clear
    blocks = [
        {n for n in columns if n <= row} | {row - s for s in diagonals if s <= row}
        for row in range(first_block, count)
    ]
    if is_query_aware:
        query_means = _means(q, kv_len - q_len, size)
        mapped, is_map_clear = _map(query_means, key_means, scale, gamma, tolerance)
        is_clear &= is_map_clear
        for row, key in mapped:
            blocks[row].add(key)
    return Selection(size, first_block, blocks, [is_clear] * len(blocks), is_query_aware)


def _cover(line: Sequence[float], gamma: float) -> int:
    """One more than how many of the largest entries sum to at most gamma."""
    count, total = 1, 0.0
    for value in sorted(line, reverse=True):
        total += value
        count += total <= gamma
    return count


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon, in nats."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        mean = (a + b) / 2
        total += sum(x / 2 * math.log(x / mean) for x in (a, b) if x > 0)
    return total


def _map(
    query_means: list[Tensor],
    key_means: list[Tensor],
    scale: float,
    gamma: float,
    tolerance: float,
) -> tuple[list[tuple[int, int]], bool]:
    """The largest probabilities between blocks that sum to at most gamma of all, as (row, key)."""
    first_block = len(key_means) - len(query_means)
    found: list[tuple[float, int, int]] = []
    for row, query in enumerate(query_means):
        logits = [query @ mean * scale for mean in key_means[: first_block + row + 1]]
        row_probabilities = torch.softmax(torch.stack(logits), 0).tolist()
        found += [(-value, row, key) for key, value in enumerate(row_probabilities)]
    kept: list[tuple[int, int]] = []
    limit, total, is_clear = gamma * len(query_means), 0.0, True
    found.sort()
    for at, (value, row, key) in enumerate(found):
        total -= value
        is_clear &= abs(total - limit) > tolerance
        if total <= limit:
            kept.append((row, key))
        elif at == len(kept) > 0:
            is_clear &= value - found[at - 1][0] > tolerance * -value
    return kept, is_clear


# ---- XAttention ----------------------------------------------------------------------------------


def xattention(
    q: Tensor,
    k: Tensor,
    scale: float,
    stride: int,
    threshold: float,
    norm: float,
    size: int,
    tolerance: float,
) -> Selection:
    """What one head attends."""
    q_len, kv_len = len(q), len(k)
    prefix = kv_len - q_len
    groups = math.ceil(kv_len / stride)
    logits = torch.zeros(groups, groups, dtype=torch.float64)
    for t in range(stride):
        # Of each group the query and the key that meet on the antidiagonal; zeros where none is.
        queries = torch.zeros(groups, q.shape[1], dtype=torch.float64)
        keys = torch.zeros(groups, k.shape[1], dtype=torch.float64)
        for group in range(groups):
            position = group * stride + stride - 1 - t
            if prefix <= position < kv_len:
                queries[group] = q[position - prefix]
            if group * stride + t < kv_len:
                keys[group] = k[group * stride + t]
        logits += queries @ keys.T
    logits *= scale / (stride * norm)

    count, first_block = math.ceil(kv_len / size), prefix // size
    scores = [[0.0] * count for _ in range(count)]
    for group in range(prefix // stride, groups):
        probabilities = torch.softmax(logits[group, : group + 1], 0).tolist()
        for key_group, value in enumerate(probabilities):
            scores[group * stride // size][key_group * stride // size] += value
    chosen = [
        _until(scores[row], {0, row}, threshold, tolerance) for row in range(first_block, count)
    ]
    return Selection(
        size, first_block, [blocks for blocks, _ in chosen], [clear for _, clear in chosen]
    )


def _until(
    scores: Sequence[float], forced: set[int], threshold: float, tolerance: float
) -> tuple[set[int], bool]:
    """The forced blocks, then the best others while those before have less than the threshold."""
    total = sum(scores)
    before = sum(scores[n] for n in forced)
    others = sorted((n for n in range(len(scores)) if n not in forced), key=lambda n: -scores[n])
    kept, is_clear = set(forced), True
    worst = math.inf
    for block in others:
        is_clear &= abs(before - threshold * total) > tolerance * total
        if before >= threshold * total:
            is_clear &= worst - scores[block] > tolerance * total
            break
        kept.add(block)
        before += scores[block]
        worst = scores[block]
    return kept, is_clear


# ---- The best blocks -----------------------------------------------------------------------------


def top_k(q: Tensor, k: Tensor, scale: float, count: int, tolerance: float) -> list[set[int]]:
    """The 64-wide key blocks with the most dense attention of each row block of 64 queries.

    Asserts that no rounding can flip the choice.
    """
    probabilities = _probabilities(q, k, scale)
    chosen = []
    for begin in range(0, len(q), 64):
        end = min(begin + 64, len(q))
        reached = end + len(k) - len(q)
        mass = [
            float(probabilities[begin:end, key : key + 64].sum()) for key in range(0, reached, 64)
        ]
        best, is_clear = _top(mass, count, tolerance)
        assert is_clear, f"rows {begin}..{end - 1}: two blocks are too close; change the seed"
        chosen.append(best)
    return chosen
