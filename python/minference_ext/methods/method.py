"""What a method is: a rule that says, for one layer and one prompt, which keys each query attends.

A method sees q, k and v of one prompt, and most answer with a `LayerIndex`: patterns and lists that
`minference_ext.sparse_attention` takes, so all of them run on the same kernels and their cost is
counted in the same pieces. Parameters are the fields of a frozen dataclass.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    q: `[1, H, q_len, head_dim]`, rotated. k, v: `[1, H_kv, kv_len, head_dim]`, k rotated.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layer_idx: int = 0
    head_idx: tuple[int, ...] | None = None  #: which heads of the model these are; None: all
    softmax_scale: float | None = None  #: None: head_dim ** -0.5
    rotation: Rotation | None = None  #: for methods with `needs_rotation`

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def head_indices(self) -> tuple[int, ...]:
        """Which query heads of the model these are."""
        return tuple(range(self.num_heads)) if self.head_idx is None else self.head_idx

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale

    def heads(self, heads: Sequence[int]) -> Layer:
        """The layer of some of its query heads, each with its kv head; whole groups are views."""
        group = self.num_heads // self.k.shape[1]
        kv_heads = [head // group for head in heads]
        firsts = kv_heads[::group]
        is_whole = list(heads) == [kv * group + row for kv in firsts for row in range(group)]
        kv = firsts if is_whole else kv_heads
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
        """What `attend` computes, [1, H] each."""
        self.check(layer)
        return plan_stats(
            layer.q, layer.k, softmax_scale=layer.softmax_scale, **self.index(layer).arguments()
        )

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
    groups = _heads_by_method(methods, layer)
    if len(groups) == 1:
        return next(iter(groups)).attend(layer)
    batch, heads, q_len, head_dim = layer.q.shape
    out = layer.q.new_empty((batch, q_len, heads, head_dim)).transpose(1, 2)
    lse = layer.q.new_empty((batch, heads, q_len), dtype=torch.float32)
    for method, of_method in groups.items():
        part, part_lse = method.attend(layer.heads(of_method))
        out[:, of_method] = part
        lse[:, of_method] = part_lse
    return out, lse


def stats_of_heads(methods: Sequence[Method], layer: Layer) -> PlanStats:
    """What `attend_heads` computes, [1, H] each."""
    groups = _heads_by_method(methods, layer)
    if len(groups) == 1:
        return next(iter(groups)).stats(layer)
    fields: dict[str, Tensor] = {}
    for method, of_method in groups.items():
        stats = method.stats(layer.heads(of_method))
        for field in dataclasses.fields(stats):
            values = getattr(stats, field.name)
            whole = fields.setdefault(field.name, values.new_zeros((1, layer.num_heads)))
            whole[:, of_method] = values
    return PlanStats(**fields)


def _heads_by_method(methods: Sequence[Method], layer: Layer) -> dict[Method, list[int]]:
    if len(methods) == 1:
        return {methods[0]: list(range(layer.num_heads))}
    require(
        len(methods) == layer.num_heads,
        "methods",
        f"{len(methods)} methods",
        f"one, or one for each of the {layer.num_heads} query heads",
    )
    groups: dict[Method, list[int]] = {}
    for head, method in enumerate(methods):
        groups.setdefault(method, []).append(head)
    return groups
