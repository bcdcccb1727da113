"""What a method is: a rule that says, for one layer and one prompt, which keys each query attends.

A method sees q, k and v of one prompt, and most answer with a `LayerIndex`: patterns and lists that
`minference_ext.sparse_attention` takes, so all of them run on the same kernels and their cost is
counted in the same pieces. Parameters are the fields of a frozen dataclass.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from minference_ext.ops import SlashMode, plan_stats, sparse_attention
from minference_ext.patterns import HeadPattern, PlanStats


@dataclass(frozen=True)
class Rotation:
    """RoPE as a model applied it: x cos + rotate_half(x) sin on the first rotary_dim elements."""

    cos: Tensor  #: [q_len, rotary_dim]
    sin: Tensor  #: [q_len, rotary_dim]


@dataclass(frozen=True)
class Layer:
    """One layer's attention over one prompt, or over a chunk of queries at its end.

    q: `[1, H, q_len, head_dim]`, rotated; q_len >= 1. k, v: `[1, H_kv, kv_len, head_dim]`, k
    rotated; kv_len >= q_len, H a multiple of H_kv. Anything else is a ValueError.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layer_idx: int = 0
    head_idx: tuple[int, ...] | None = None  #: which heads of the model these are; None: all
    softmax_scale: float | None = None  #: None: head_dim ** -0.5
    rotation: Rotation | None = None  #: for methods with `needs_rotation`

    def __post_init__(self) -> None:
        q, k, v = (tuple(tensor.shape) for tensor in (self.q, self.k, self.v))
        require(len(q) == 4 and q[0] == 1 and q[2] > 0, "q", q, "[1, H, q_len >= 1, head_dim]")
        require(
            len(k) == 4 and k[0] == 1 and k[3] == q[3] and k[1] > 0 and q[1] % k[1] == 0,
            "k",
            k,
            f"[1, H_kv, kv_len, {q[3]}], with H_kv a divisor of the {q[1]} heads of q",
        )
        require(k[2] >= q[2], "k", f"{k[2]} keys", f"at least as many as the {q[2]} queries")
        require(v == k, "v", v, f"{k}, as k")
        require(
            self.head_idx is None or len(self.head_idx) == q[1],
            "head_idx",
            self.head_idx,
            f"None, or one index for each of the {q[1]} heads of q",
        )

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def group(self) -> int:
        """Query heads that read the same kv head."""
        return self.num_heads // self.k.shape[1]

    @property
    def head_indices(self) -> tuple[int, ...]:
        """Which query heads of the model these are."""
        return tuple(range(self.num_heads)) if self.head_idx is None else self.head_idx

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale

    def by_kv_head(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each kv head the keys [kv_len, head_dim], and the queries [group, q_len, head_dim]
        that read them."""
        return zip(self.k[0], self.q[0].split(self.group), strict=True)

    def heads(self, heads: Sequence[int]) -> Layer:
        """The layer of some of its query heads, at least one.

        Neighbouring heads are views. Where kv heads have unequal numbers of these query heads, some
        are copied, so that they have equal ones.
        """
        kv_heads = [head // self.group for head in heads]
        runs = [len(list(run)) for _, run in itertools.groupby(kv_heads)]
        kv = kv_heads[:: math.gcd(*runs)]
        return dataclasses.replace(
            self,
            q=_take(self.q, list(heads)),
            k=_take(self.k, kv),
            v=_take(self.v, kv),
            head_idx=tuple(self.head_indices[head] for head in heads),
        )


def _take(tensor: Tensor, heads: list[int]) -> Tensor:
    if heads == list(range(heads[0], heads[0] + len(heads))):
        return tensor.narrow(1, heads[0], len(heads))
    return tensor[:, heads]


@dataclass(frozen=True)
class LayerIndex:
    """What `minference_ext.sparse_attention` takes beside q, k and v; fields as there."""

    head_patterns: tuple[HeadPattern, ...]
    vertical_idx: Tensor | None = None
    slash_idx: Tensor | None = None
    block_idx: Tensor | None = None
    mode: SlashMode = "cover"
    estimate_every: int = 0
    dense_fallback: bool = True

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Method(ABC):
    """A method with its parameters. Subclasses are frozen dataclasses of ints, floats and text."""

    name: ClassVar[str]
    summary: ClassVar[str]  #: one sentence for `minference methods`
    source: ClassVar[str]  #: paper and section
    needs_rotation: ClassVar[bool] = False  #: `Layer.rotation` must be given
    needs_whole_prompt: ClassVar[bool] = False  #: q_len must be kv_len
    has_memory: ClassVar[bool] = False  #: what it learns from one prompt is used for the next

    @abstractmethod
    def index(self, layer: Layer) -> LayerIndex:
        """What every head of this layer attends."""

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """out `[1, H, q_len, head_dim]` in the dtype of q, lse float32 `[1, H, q_len]`."""
        self.check(layer)
        return sparse_attention(
            layer.q,
            layer.k,
            layer.v,
            softmax_scale=layer.softmax_scale,
            **self.index(layer).arguments(),
        )

    def stats(self, layer: Layer) -> PlanStats:
        """What `attend` computes, [1, H] each, once it is chosen: what choosing costs is not in
        it."""
        self.check(layer)
        return plan_stats(
            layer.q, layer.k, softmax_scale=layer.softmax_scale, **self.index(layer).arguments()
        )

    def heads_at_once(self, layer: Layer) -> int:
        """Query heads >= 1 that `attend_heads` attends together: fewer have shorter lists."""
        return layer.num_heads

    def forget(self) -> None:  # noqa: B027  # most have nothing to forget
        """Drops what was learned from earlier prompts."""

    def check(self, layer: Layer) -> None:
        """Raises ValueError where `layer` lacks what the method needs."""
        if self.needs_whole_prompt and layer.q.shape[2] != layer.k.shape[2]:
            raise ValueError(
                f"{self.name} attends whole prompts: found {layer.q.shape[2]} queries for "
                f"{layer.k.shape[2]} keys, and it does not continue a prefix or a chunk"
            )
        if self.needs_rotation and layer.rotation is None:
            raise ValueError(
                f"{self.name} turns queries and keys back: it needs the cos and sin of RoPE, and "
                "this layer gives none"
            )

    def __str__(self) -> str:
        """As `parse` reads it: vertical_slash(1000,6096)."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        values = [str(getattr(self, field.name)) for field in fields if field.repr]
        return f"{self.name}({','.join(values)})" if values else self.name


def require(holds: bool, where: str, found: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{where}: found {found!r}; it must be {allowed}")


def check_sizes(name: str, least: int = 0, **sizes: int) -> None:
    """Raises ValueError where a size of method `name` is no whole number >= least."""
    for size_name, size in sizes.items():
        require(
            type(size) is int and size >= least,
            f"{name}, {size_name}",
            size,
            f"a whole number >= {least}",
        )


def attend_heads(methods: Sequence[Method], layer: Layer) -> tuple[Tensor, Tensor]:
    """Attention of a layer whose query heads each have their own method.

    Args:
        methods: one per query head, or one for all.
        layer: batch 1.

    Returns:
        out `[1, H, q_len, head_dim]` over memory contiguous as `[1, q_len, H, head_dim]`, and lse
        float32 `[1, H, q_len]`.
    """
    parts = _parts(methods, layer)
    if len(parts) == 1:
        return parts[0][0].attend(layer)
    batch, num_heads, q_len, head_dim = layer.q.shape
    out = layer.q.new_empty((batch, q_len, num_heads, head_dim)).transpose(1, 2)
    lse = layer.q.new_empty((batch, num_heads, q_len), dtype=torch.float32)
    for method, heads in parts:
        out[:, heads], lse[:, heads] = method.attend(layer.heads(heads))
    return out, lse


def stats_of_heads(methods: Sequence[Method], layer: Layer) -> PlanStats:
    """What `attend_heads` computes, [1, H] each."""
    parts = _parts(methods, layer)
    if len(parts) == 1:
        return parts[0][0].stats(layer)
    fields: dict[str, Tensor] = {}
    for method, heads in parts:
        stats = method.stats(layer.heads(heads))
        for field in dataclasses.fields(stats):
            values = getattr(stats, field.name)
            whole = fields.setdefault(field.name, values.new_zeros((1, layer.num_heads)))
            whole[:, heads] = values
    return PlanStats(**fields)


def _parts(methods: Sequence[Method], layer: Layer) -> list[tuple[Method, list[int]]]:
    """Heads that one call of their method attends."""
    methods = list(methods) * layer.num_heads if len(methods) == 1 else methods
    require(
        len(methods) == layer.num_heads,
        "methods",
        f"{len(methods)} methods",
        f"one, or one for each of the {layer.num_heads} query heads",
    )
    by_method: dict[Method, list[int]] = {}
    for head, method in enumerate(methods):
        by_method.setdefault(method, []).append(head)
    parts = []
    for method, heads in by_method.items():
        size = method.heads_at_once(layer)
        parts += [(method, heads[begin : begin + size]) for begin in range(0, len(heads), size)]
    return parts
