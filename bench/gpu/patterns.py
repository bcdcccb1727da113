"""Vertical-slash lines of known density or distance, and those as masks for flex_attention.

bench/cuda/line_patterns.h draws such lines for the C++ benchmark; only the random numbers differ. A
share is that of the causal pairs that the lines' cover attends: columns take an eighth of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROW_BLOCK = 64  # query rows that share a cover, and its width
FLEX_BLOCK = 128  # rows and keys of a block of flex_attention


@dataclass(frozen=True)
class LineShape:
    """`local` offsets from 0 on, then `bands` bands of `width` offsets anywhere."""

    num_vertical: int
    local: int
    bands: int
    width: int


HALF_LOCAL = LineShape(num_vertical=100, local=400, bands=400, width=1)  # the budget (100, 800)
RANDOM = LineShape(num_vertical=100, local=1, bands=799, width=1)


def draw(shape: LineShape, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """(verticals, slashes), ascending int64, of one head."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.randperm(length, generator=generator)[: max(0, shape.num_vertical - 4)]
    verticals = torch.cat([torch.arange(min(4, length)), others]).unique()
    starts = torch.randint(length, (shape.bands,), generator=generator)
    bands = (starts[:, None] + torch.arange(shape.width)).flatten()
    slashes = torch.cat([torch.arange(min(shape.local, length)), bands[bands < length]]).unique()
    return verticals, slashes


def slash_share(slashes: Tensor, length: int) -> float:
    """Share of the causal pairs in the cover: a line stands for 64 offsets on average."""
    change = torch.zeros(length + ROW_BLOCK + 1, dtype=torch.int64)
    change.index_add_(0, slashes, torch.ones_like(slashes))
    change.index_add_(0, slashes + ROW_BLOCK, -torch.ones_like(slashes))
    offsets = (change.cumsum(0)[:length] > 0).nonzero().flatten()
    return float((length - offsets).double().sum()) / (length**2 / 2)


def clustered(share: float, length: int) -> LineShape:
    """A local band and up to 20 bands as wide: the widest that do not attend more than `share`."""
    num_vertical = min(max(int(share / 8 * length), 4), 1000)
    bands = min(max(int(share * length / 512), 1), 20)
    low, high = 1, max(1, int(share * length))
    while low < high:
        middle = (low + high + 1) // 2
        _, slashes = draw(LineShape(num_vertical, middle, bands, middle), length, seed=0)
        if slash_share(slashes, length) > share * 7 / 8:
            high = middle - 1
        else:
            low = middle
    return LineShape(num_vertical, low, bands, low)


def clustered_heads(share: float, length: int, heads: int) -> LineShape:
    """As wide that heads with the seeds 0, 1, ... attend `share` on average.

    In long prompts columns take less than an eighth, and other draws are lighter than the first.
    """
    shape = clustered(share, length)
    for _ in range(3):  # slashes attend nearly in proportion to the width
        found = sum(slash_share(draw(shape, length, head)[1], length) for head in range(heads))
        wanted = (share - shape.num_vertical / length) * heads
        width = min(max(round(shape.width * wanted / found), 1), length)
        shape = replace(shape, local=width, width=width)
    return shape


def isolated_lines(length: int, head: int, heads_per_kv: int) -> tuple[Tensor, Tensor]:
    """(verticals, slashes): slashes far from each other and from those of heads with the same keys.

    line_patterns.h says how far, and why. Besides, offset 0 and 4 columns.
    """
    count = min(max(length // (128 * heads_per_kv), 1), 40)
    step = length // (count * heads_per_kv + 1)
    generator = torch.Generator().manual_seed(head)
    noise = torch.randint(step // 4 + 1, (count,), generator=generator)
    places = torch.arange(count) * heads_per_kv + head % heads_per_kv + 1
    slashes = (places * step + noise).clamp(max=length - 1)
    return torch.arange(min(4, length)), torch.cat([torch.zeros(1, dtype=torch.int64), slashes])


def isolated(
    length: int, heads: int, heads_per_kv: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """As `lists`."""
    return _stacked([isolated_lines(length, head, heads_per_kv) for head in range(heads)], device)


def lists(shape: LineShape, length: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(vertical_idx, slash_idx) int32 [1, heads, count], -1 past the last of a head."""
    return _stacked([draw(shape, length, seed) for seed in range(heads)], device)


def _stacked(drawn: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    def padded(index: int) -> Tensor:
        rows = torch.nn.utils.rnn.pad_sequence(
            [pair[index].int() for pair in drawn], batch_first=True, padding_value=-1
        )
        return rows[None].to(device)

    return padded(0), padded(1)


@dataclass(frozen=True)
class Cover:
    """The pairs that lists attend in mode "cover", for sequences of one length."""

    columns: Tensor  #: bool [heads, length]
    cover: Tensor  #: bool [heads, length + 65]; [h, t]: keys t before the end of a row block

    @staticmethod
    def of(vertical_idx: Tensor, slash_idx: Tensor, length: int) -> Cover:
        heads, device = vertical_idx.shape[1], vertical_idx.device

        def marks(index: Tensor, size: int) -> Tensor:
            flags = torch.zeros(heads, size + 1, dtype=torch.int32, device=device)
            places = torch.where(index[0] < 0, size, index[0]).long()
            return flags.scatter_(1, places, 1)[:, :size]

        # A line at s covers t in [s + 1, s + 64].
        lines = torch.nn.functional.pad(marks(slash_idx, length), (ROW_BLOCK + 1, ROW_BLOCK))
        sums = lines.cumsum(1, dtype=torch.int32)
        covered = sums[:, ROW_BLOCK:] > sums[:, :-ROW_BLOCK]
        return Cover(marks(vertical_idx, length) > 0, covered[:, : length + ROW_BLOCK + 1])

    def blocks(self) -> tuple[Tensor, Tensor]:
        """(any, all) bool [heads, n, n]: blocks of 128 x 128 with pairs, and with all of them."""
        heads, length = self.columns.shape
        if length % FLEX_BLOCK:
            raise ValueError(f"length is {length}; it must be a multiple of {FLEX_BLOCK}")
        count = length // FLEX_BLOCK
        sums = torch.nn.functional.pad(self.cover.cumsum(1, dtype=torch.int32), (1, 0))
        distance = torch.arange(count, device=self.cover.device) * FLEX_BLOCK
        has_any = torch.zeros(heads, count, dtype=torch.bool, device=self.cover.device)
        has_all = torch.ones_like(has_any)
        for half in (1, 2):  # the row blocks of 64 within 128
            # Keys of the block: t in [last - 127, last].
            last = distance + half * ROW_BLOCK
            found = sums[:, last + 1] - sums[:, (last - FLEX_BLOCK + 1).clamp(min=0)]
            has_any |= found > 0
            has_all &= found == FLEX_BLOCK
        has_all[:, 0] = False  # the diagonal
        columns = self.columns.view(heads, count, FLEX_BLOCK)
        order = torch.arange(count, device=self.cover.device)
        behind = order[:, None] - order[None, :]
        causal, behind = behind >= 0, behind.clamp(min=0)
        some = (has_any[:, behind] | columns.any(-1)[:, None, :]) & causal
        return some, (has_all[:, behind] | columns.all(-1)[:, None, :]) & (causal & (behind > 0))
