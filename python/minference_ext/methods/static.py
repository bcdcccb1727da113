"""Indices that an earlier prompt set: what vertical-slash and block-sparse lose without estimating.

A method object learns from the first prompt that each layer and head shows it, `stats` or `attend`,
and uses that for every later one until `forget`. Two objects never share what they learned, so they
are equal only where they are the same object. Prompts are whole: the first chunk of a longer one
would set an index of its own length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from minference_ext.patterns import HeadPattern
from minference_ext.vs_index import estimate_vs_index

from .block_lists import ROW_BLOCK, block_means, num_blocks, of_lists, ranked
from .method import Layer, LayerIndex, Method, check_sizes
from .shapes import MINFERENCE

_CHUNK_SCORES = 1 << 24  #: block scores of one head held at a time, 64 MiB

#: By layer and head of the model: int32 tensors whose last axis are entries.
_Memory: TypeAlias = dict[tuple[int, int], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class _Remembered(Method):
    """What `learn` finds in the first prompt of a layer and head serves all later ones."""

    memory: _Memory = field(default_factory=dict, init=False, repr=False)

    needs_whole_prompt: ClassVar[bool] = True
    has_memory: ClassVar[bool] = True

    @abstractmethod
    def learn(self, layer: Layer) -> tuple[Tensor, ...]:
        """Lists of the layer's heads, [H, ...] each."""

    def forget(self) -> None:
        self.memory.clear()

    def remembered(self, layer: Layer) -> list[tuple[Tensor, ...]]:
        """The lists of each head, on the layer's device; learned now where that is still to do."""
        keys = [(layer.layer_idx, head) for head in layer.head_indices]
        missing = [head for head, key in enumerate(keys) if key not in self.memory]
        if missing:
            learned = self.learn(layer.heads(missing))
            for position, head in enumerate(missing):
                # A copy of its own: a view would keep the lists of all heads.
                lists = tuple(of_heads[position].clone() for of_heads in learned)
                self.memory.setdefault(keys[head], lists)  # another thread may have been first
        device = layer.q.device
        return [tuple(lists.to(device) for lists in self.memory[key]) for key in keys]


@dataclass(frozen=True, eq=False)
class Static(_Remembered):
    """The columns and diagonals of an earlier prompt.

    A query attends as with `vertical_slash` of these sizes, over lines that `vertical_slash` would
    choose for the first prompt that the layer and head met; for that prompt both methods are the
    same, but that `vertical_slash` is dense where that costs no more. Lines that a later prompt is
    too short for are left out, and a longer one gets no others. Prompts are whole: else the first
    chunk of one would set the lines.

    The original's code keeps one index per layer, that of its first head, for all heads and as long
    as that prompt was, and prefers offsets 0..29 only, not 0..99. Here every head has its own.
    """

    vertical_size: int = 1000
    slash_size: int = 6096

    name: ClassVar[str] = "static"
    summary: ClassVar[str] = "Vertical-slash with the lines of an earlier prompt."
    source: ClassVar[str] = f"{MINFERENCE}, section 4, ours w/ static"

    def __post_init__(self) -> None:
        check_sizes(self.name, vertical_size=self.vertical_size, slash_size=self.slash_size)

    def learn(self, layer: Layer) -> tuple[Tensor, ...]:
        columns, offsets = estimate_vs_index(
            layer.q,
            layer.k,
            self.vertical_size,
            self.slash_size,
            softmax_scale=layer.softmax_scale,
        )
        return columns[0], offsets[0]

    def index(self, layer: Layer) -> LayerIndex:
        lines, kv_len = self.remembered(layer), layer.k.shape[2]
        vertical_idx, slash_idx = (_stacked(lists)[None] for lists in zip(*lines, strict=True))
        return LayerIndex(
            (HeadPattern.vertical_slash_index(),) * layer.num_heads,
            vertical_idx=vertical_idx.masked_fill(vertical_idx >= kv_len, -1),
            slash_idx=slash_idx.masked_fill(slash_idx >= kv_len, -1),
        )


@dataclass(frozen=True, eq=False)
class StaticBlockSparse(_Remembered):
    """The key blocks of an earlier prompt.

    A query of row block m attends the 64-wide key blocks that `block_sparse` would choose for row
    block m of the first prompt that the layer and head met: for that prompt both methods are the
    same. A shorter prompt uses its first row blocks. Row block m of a longer one, past the last of
    R remembered row blocks, attends the blocks n + m - (R - 1) where row block R - 1 has n: the
    same distances from the diagonal. Prompts are whole: else the first chunk of one would set the
    blocks.

    Remembers 4 bytes per layer, head, row block and block: top_k / 16 bytes per token and head.
    """

    top_k: int = 100

    name: ClassVar[str] = "static_block_sparse"
    summary: ClassVar[str] = "Block-sparse with the key blocks of an earlier prompt."
    source: ClassVar[str] = f"{MINFERENCE}, section 4, ours w/ static"

    def __post_init__(self) -> None:
        check_sizes(self.name, least=1, top_k=self.top_k)

    def learn(self, layer: Layer) -> tuple[Tensor, ...]:
        chosen: list[Tensor] = []
        for keys, group in layer.by_kv_head():
            key_means = block_means(keys, ROW_BLOCK)
            chosen += [
                _best_blocks(block_means(queries, ROW_BLOCK), key_means, self.top_k)
                for queries in group
            ]
        return (torch.stack(chosen),)

    def index(self, layer: Layer) -> LayerIndex:
        row_blocks = num_blocks(layer.q.shape[2], ROW_BLOCK)
        return of_lists([_continued(lists, row_blocks) for (lists,) in self.remembered(layer)])


def _best_blocks(query_means: Tensor, key_means: Tensor, top_k: int) -> Tensor:
    """int32 [row blocks, min(top_k, blocks)]: the best blocks up to each row block's own, then -1;
    ties to the lowest index. Both means are [blocks, head_dim]."""
    block = torch.arange(len(key_means), device=key_means.device)
    best = []
    for row_blocks in block.split(max(1, _CHUNK_SCORES // len(block))):
        scores = query_means[row_blocks] @ key_means.T
        scores.masked_fill_(block > row_blocks[:, None], -torch.inf)
        chosen = ranked(scores)[:, :top_k]
        best.append(chosen.masked_fill(chosen > row_blocks[:, None], -1).to(torch.int32))
    return torch.cat(best)


def _continued(blocks: Tensor, row_blocks: int) -> Tensor:
    """Lists [R, n] as [row_blocks, n]: cut, or its last row repeated along the diagonal."""
    num_more = row_blocks - len(blocks)
    if num_more <= 0:
        return blocks[:row_blocks]
    distance = torch.arange(1, num_more + 1, dtype=torch.int32, device=blocks.device)[:, None]
    last = blocks[-1:]
    return torch.cat((blocks, torch.where(last >= 0, last + distance, -1)))


def _stacked(lists: Sequence[Tensor]) -> Tensor:
    """[heads, longest] of lists [n]; -1 past the end of each."""
    longest = max(entries.shape[-1] for entries in lists)
    return torch.stack(
        [
            torch.nn.functional.pad(entries, (0, longest - entries.shape[-1]), value=-1)
            for entries in lists
        ]
    )
