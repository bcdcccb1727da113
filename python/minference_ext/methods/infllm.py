"""InfLLM: a window with the model's rotations, and far blocks at one distance, chosen by content.

Two calls of the kernels make a layer: A-shape over the queries and keys as they are, and block
lists over queries and keys turned to fixed positions, without the first n_local queries and the
last n_local keys. With both cut alike, causality of what remains is exactly o >= n_local, so no
pair counts twice, and the two results merge by their lse.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minference_ext.ops import (
    a_shape_attention,
    block_sparse_attention_with_index,
    plan_stats,
)
from minference_ext.patterns import HeadPattern, PlanStats

from .block_lists import ROW_BLOCK, num_blocks, power_of_two_near, ranked
from .method import Layer, LayerIndex, Method, Rotation, check_sizes, require

_SCORES_PER_STEP = 1 << 24  # logits of the window held at a time, some 12 bytes each


@dataclass(frozen=True)
class InfLLM(Method):
    """A window, and far keys at one distance: first ones, chosen blocks and the most recent.

    Query i and key j are positions in the prompt, o = i - j. Sizes of tokens are multiples of 64.
    Every query attends, in one softmax:

    * keys with o < n_local, rotated as the model does;
    * of the keys with o >= n_local, all of them at the distance n_local, that is keys turned to the
      prompt's first position and the query to position n_local:
      the first n_init; the memory blocks chosen for its exec block; and the remainder, keys behind
      the last archived memory block.

    Exec block: queries [a, a + exec_block_size), a multiple of exec_block_size.
    Memory block m: keys [n_init + m block_size, n_init + (m + 1) block_size). It is archived for an
    exec block if it ends at or before a - n_local + 1: the window has left it behind.
    Choice: the topk archived blocks whose representatives have the largest product with the mean
    of the exec block's queries, summed over the query heads; one choice for all heads that the
    method is given, so for the whole layer, or for its heads where others have other methods. Ties
    go to the lowest block.
    Representative, per query head: the mean of the repr_topk keys of the block that the window's
    probabilities of all queries sum up highest for, ties to the lowest key. Queries that see the
    block in their window come before an exec block that may choose it: the choice is causal.

    `stats` counts the pairs of both calls, as attention multiplies them; `causal_pairs` are those
    of dense attention, so of the prompt once. The choice is not counted: it costs the products of
    queries and keys of the window once more.

    The original walks over the prompt in chunks and moves far keys to the host, from where it
    caches max_cached_block blocks; here all keys stay where they are. Sizes are those of its code
    in MInference, whose paper has an n_local of 8192.
    """

    n_init: int = 128
    n_local: int = 4096
    topk: int = 16
    block_size: int = 128
    exec_block_size: int = 512
    repr_topk: int = 4

    name: ClassVar[str] = "infllm"
    summary: ClassVar[str] = "A window, and blocks chosen by content at one distance."
    source: ClassVar[str] = "InfLLM (arXiv 2402.04617), section 3"
    needs_rotation: ClassVar[bool] = True
    needs_whole_prompt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_sizes(self.name, topk=self.topk)
        for size_name, least in (
            ("n_init", 0),
            ("n_local", 64),
            ("block_size", 64),
            ("exec_block_size", 64),
        ):
            size = getattr(self, size_name)
            require(
                type(size) is int and size >= least and size % ROW_BLOCK == 0,
                f"{self.name}, {size_name}",
                size,
                f"a multiple of {ROW_BLOCK}, at least {least}",
            )
        require(
            type(self.repr_topk) is int and 1 <= self.repr_topk <= self.block_size,
            f"{self.name}, repr_topk",
            self.repr_topk,
            f"a whole number in 1..block_size ({self.block_size})",
        )

    def index(self, layer: Layer) -> LayerIndex:
        raise NotImplementedError(
            f"{self.name} has no single index: it attends in two calls; use attend and stats"
        )

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        self.check(layer)
        out, lse = self._attend_window(layer)
        if layer.q.shape[2] <= self.n_local:
            return out, lse
        far, block_idx = self._far(layer, lse)
        far_out, far_lse = block_sparse_attention_with_index(
            far.q, far.k, far.v, block_idx, softmax_scale=layer.softmax_scale
        )
        near_lse = lse[:, :, self.n_local :]
        weight = torch.sigmoid(far_lse - near_lse)  # 0 where no key is far: lse -inf
        for head in range(layer.num_heads):  # in float32, which all heads at once have no room for
            near = out[:, head, self.n_local :]
            merged = near.float().lerp(far_out[:, head].float(), weight[:, head, :, None])
            near.copy_(merged)
        lse[:, :, self.n_local :] = torch.logaddexp(near_lse, far_lse)
        return out, lse

    def stats(self, layer: Layer) -> PlanStats:
        self.check(layer)
        heads = layer.num_heads
        window = (HeadPattern.a_shape(0, self.n_local),) * heads
        near = plan_stats(layer.q, layer.k, window, softmax_scale=layer.softmax_scale)
        if layer.q.shape[2] <= self.n_local:
            return near
        turned, block_idx = self._far(layer, self._attend_window(layer)[1])
        far = plan_stats(
            turned.q, turned.k, (HeadPattern.block_index(),) * heads, block_idx=block_idx
        )
        sums = {
            field.name: getattr(near, field.name) + getattr(far, field.name)
            for field in dataclasses.fields(PlanStats)
        }
        return PlanStats(**{**sums, "causal_pairs": near.causal_pairs})

    def check(self, layer: Layer) -> None:
        super().check(layer)
        assert layer.rotation is not None
        shapes = [tuple(table.shape) for table in (layer.rotation.cos, layer.rotation.sin)]
        q_len, head_dim = layer.q.shape[2:]
        width = shapes[0][-1]
        require(
            shapes == [(q_len, width)] * 2 and width % 2 == 0 and width <= head_dim,
            "rotation",
            shapes,
            f"cos and sin, both [{q_len}, an even number up to {head_dim}]",
        )

    def _attend_window(self, layer: Layer) -> tuple[Tensor, Tensor]:
        return a_shape_attention(
            layer.q, layer.k, layer.v, 0, self.n_local, softmax_scale=layer.softmax_scale
        )

    # ---- What is far -----------------------------------------------------------------------------

    def _far(self, layer: Layer, lse: Tensor) -> tuple[Layer, Tensor]:
        """The pairs with o >= n_local as a layer of their own, turned, and its block lists.

        Row t of the layer is query n_local + t, so its row blocks lie within exec blocks. The lists
        are int32 [1, H, row blocks, entries]; lse is that of the window.
        """
        assert layer.rotation is not None
        kv_len = layer.k.shape[2] - self.n_local
        key = slice(0, kv_len)
        far = dataclasses.replace(
            layer,
            q=_turned(layer.q, layer.rotation, slice(self.n_local, None), to=self.n_local),
            k=_turned(layer.k, layer.rotation, key, to=0),
            v=layer.v[:, :, key],
        )
        chosen = self._choose(layer, far, lse)
        blocks = self._block_lists(kv_len, chosen)
        return far, blocks.expand(1, layer.num_heads, -1, -1)

    @property
    def _first_exec_block(self) -> int:
        """The first exec block of far queries alone; those before it find nothing archived."""
        return num_blocks(self.n_local, self.exec_block_size)

    def _num_archived(self, exec_block: Tensor) -> Tensor:
        """Archived memory blocks of exec blocks, int64 as they are."""
        end = exec_block * self.exec_block_size - self.n_local + 1 - self.n_init
        return (end // self.block_size).clamp(min=0)

    def _choose(self, layer: Layer, far: Layer, lse: Tensor) -> Tensor:
        """int64 [exec blocks from the first of far queries alone, at least 1; up to topk]: memory
        blocks, best first. An entry counts only where as many blocks are archived."""
        q_len, device = layer.q.shape[2], layer.q.device
        first = self._first_exec_block
        exec_blocks = torch.arange(first, max(first, num_blocks(q_len, self.exec_block_size)))
        num_archived = self._num_archived(exec_blocks)  # on the CPU: no wait for a GPU
        num_memory = int(num_archived[-1]) if len(exec_blocks) > 0 else 0
        block = torch.arange(num_memory, device=device)
        if num_memory <= self.topk:
            return block.expand(max(1, len(exec_blocks)), -1)
        representatives = self._representatives(layer, far, lse, num_memory)
        begin = first * self.exec_block_size - self.n_local
        means = torch.stack(
            [
                queries.mean(1, dtype=torch.float32)
                for queries in far.q[0, :, begin:].split(self.exec_block_size, dim=1)
            ],
            dim=1,
        )  # [H, exec blocks, head_dim]
        scores = torch.einsum("hed,hmd->em", means, representatives)
        scores.masked_fill_(block >= num_archived.to(device)[:, None], -torch.inf)
        return ranked(scores)[:, : self.topk]

    def _representatives(self, layer: Layer, far: Layer, lse: Tensor, num_memory: int) -> Tensor:
        """float32 [H, num_memory, head_dim]."""
        scores = self._window_scores(layer, lse, num_memory * self.block_size)
        scores = scores.unflatten(1, (num_memory, self.block_size))
        best = ranked(scores)[..., : self.repr_topk]
        keys = far.k[0, :, self.n_init : self.n_init + num_memory * self.block_size]
        keys = keys.unflatten(1, (num_memory, self.block_size))  # [H_kv, blocks, block_size, D]
        rows = best.view(len(keys), layer.group, num_memory, self.repr_topk, 1)
        chosen = (
            keys[:, None]
            .expand(-1, layer.group, -1, -1, -1)
            .gather(3, rows.expand(-1, -1, -1, -1, keys.shape[-1]))
        )
        means: Tensor = chosen.mean(3, dtype=torch.float32).flatten(0, 1)
        return means

    def _window_scores(self, layer: Layer, lse: Tensor, num_keys: int) -> Tensor:
        """float32 [H, num_keys]: of keys from n_init on, the window's probabilities, summed over
        all queries. Logits are products in the dtype of q, of one kv head's queries at a time."""
        q_len, device = layer.q.shape[2], layer.q.device
        scores = torch.zeros((layer.num_heads, num_keys), dtype=torch.float32, device=device)
        near = power_of_two_near(layer.scale)
        width = layer.group * (self.n_local + self.exec_block_size)
        step = max(1, min(self.exec_block_size, _SCORES_PER_STEP // width))
        for begin in range(0, q_len, step):
            end = min(begin + step, q_len)
            first = max(self.n_init, begin - self.n_local + 1)
            last = min(end, self.n_init + num_keys)
            if first >= last:
                continue
            position = torch.arange(begin, end, device=device)[:, None]
            offset = position - torch.arange(first, last, device=device)
            is_outside = (offset < 0) | (offset >= self.n_local)
            sums = scores[:, first - self.n_init : last - self.n_init].split(layer.group)
            row_lse = lse[0, :, begin:end, None].split(layer.group)
            for kv_head, (keys, queries) in enumerate(layer.by_kv_head()):
                logits = ((queries[:, begin:end] * near) @ keys[first:last].T).float()
                logits.mul_(layer.scale / near).sub_(row_lse[kv_head])
                sums[kv_head].add_(logits.masked_fill_(is_outside, -torch.inf).exp_().sum(1))
        return scores

    def _block_lists(self, kv_len: int, chosen: Tensor) -> Tensor:
        """int32 [row blocks, entries]: 64-wide key blocks, -1 is no entry."""
        row_block = torch.arange(num_blocks(kv_len, ROW_BLOCK), device=chosen.device)
        exec_block = (self.n_local + row_block * ROW_BLOCK) // self.exec_block_size
        num_archived = self._num_archived(exec_block)
        memory = chosen[(exec_block - self._first_exec_block).clamp(min=0)]  # [row blocks, topk]
        rank = torch.arange(memory.shape[1], device=chosen.device)
        per_block = self.block_size // ROW_BLOCK
        first = self.n_init // ROW_BLOCK
        blocks = first + memory[:, :, None] * per_block
        blocks = blocks + torch.arange(per_block, device=chosen.device)
        blocks = blocks.masked_fill((rank >= num_archived[:, None])[:, :, None], -1).flatten(1)
        remainder_begin = first + num_archived * per_block
        # An exec block is at most this much past its last archived block.
        longest = min(len(row_block), (self.exec_block_size + self.block_size) // ROW_BLOCK + 1)
        remainder = remainder_begin[:, None] + torch.arange(longest, device=chosen.device)
        sinks = torch.arange(first, device=chosen.device).expand(len(row_block), -1)
        lists = torch.cat((sinks, blocks, remainder), dim=1)
        return lists.masked_fill(lists > row_block[:, None], -1).to(torch.int32)


def _turned(rows: Tensor, rotation: Rotation, which: slice, to: int) -> Tensor:
    """Rows of `which` positions of [1, heads, length, head_dim], turned from their own rotation to
    that of position `to`; in the dtype of rows, computed in float32.

    cos and sin may hold a factor (YaRN's): it stays in, so that all scores have it alike.
    """
    rows = rows[:, :, which]
    cos, sin = rotation.cos[which].float(), rotation.sin[which].float()
    to_cos, to_sin = rotation.cos[to].float(), rotation.sin[to].float()
    length = cos.square() + sin.square()
    real = (cos * to_cos + sin * to_sin) / length  # of e^(i (to - own))
    imaginary = (cos * to_sin - sin * to_cos) / length
    width = cos.shape[-1]
    turned = rows.clone()
    for head in range(rows.shape[1]):
        values = rows[:, head, :, :width].float()
        first, second = values.chunk(2, dim=-1)
        turned[:, head, :, :width] = values * real + torch.cat((-second, first), -1) * imaginary
    return turned
