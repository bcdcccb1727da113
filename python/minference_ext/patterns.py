"""Which keys a head attends, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

PatternKind = Literal[
    "dense",
    "a_shape",
    "tri_shape",
    "vertical_slash",
    "block_sparse",
    "vertical_slash_index",
    "block_index",
]

# Per kind: the value of minference::PatternKind and what its sizes are.
_KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "dense": (0, ()),
    "a_shape": (1, ("sink", "window")),
    "tri_shape": (2, ("sink", "window", "last")),
    "vertical_slash": (3, ("vertical_size", "slash_size")),
    "block_sparse": (4, ("top_k",)),
    "vertical_slash_index": (5, ()),
    "block_index": (6, ()),
}


@dataclass(frozen=True)
class HeadPattern:
    """The pattern of one query head. Build it with one of the named constructors.

    Attributes:
        kind: name of the pattern.
        sizes: its sizes, in the order of the constructor: tokens, lines or key blocks, >= 0.
        row: (kind, size0, size1, size2) as `torch.ops.minference.sparse_attention` takes it.
    """

    kind: PatternKind
    sizes: tuple[int, ...] = ()
    row: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(_KINDS)}")
        value, names = _KINDS[self.kind]
        if len(self.sizes) != len(names):
            raise ValueError(
                f"sizes of {self.kind} is {self.sizes}; it must be ({', '.join(names)})"
            )
        size0, size1, size2 = (*self.sizes, 0, 0, 0)[:3]
        object.__setattr__(self, "row", (value, size0, size1, size2))

    @staticmethod
    def dense() -> HeadPattern:
        """Every key up to the query's position."""
        return HeadPattern("dense")

    @staticmethod
    def a_shape(sink: int, window: int) -> HeadPattern:
        """The first `sink` keys and the latest `window` keys."""
        return HeadPattern("a_shape", (sink, window))

    @staticmethod
    def tri_shape(sink: int, window: int, last: int) -> HeadPattern:
        """As a_shape; the last `last` queries attend every key."""
        return HeadPattern("tri_shape", (sink, window, last))

    @staticmethod
    def vertical_slash(vertical_size: int, slash_size: int) -> HeadPattern:
        """That many columns and diagonals, estimated from the prompt."""
        return HeadPattern("vertical_slash", (vertical_size, slash_size))

    @staticmethod
    def block_sparse(top_k: int) -> HeadPattern:
        """The `top_k` best key blocks of each row block, by mean-pooled scores."""
        return HeadPattern("block_sparse", (top_k,))

    @staticmethod
    def vertical_slash_index() -> HeadPattern:
        """Columns and diagonals given in `vertical_idx` and `slash_idx`."""
        return HeadPattern("vertical_slash_index")

    @staticmethod
    def block_index() -> HeadPattern:
        """Key blocks given in `block_idx`."""
        return HeadPattern("block_index")


def flatten(head_patterns: Iterable[HeadPattern]) -> list[int]:
    """The rows of all heads one after the other: what the ops take."""
    return [number for pattern in head_patterns for number in pattern.row]


def size_list(sizes: int | Sequence[int]) -> Sequence[int]:
    """A list even of one int: torch.compile may hold a symbolic one, which int[1] rejects."""
    return [sizes] if isinstance(sizes, int) else sizes


@dataclass(frozen=True)
class PlanStats:
    """What a plan computes and costs. Every field: int64 [sequences, heads]."""

    is_dense: Tensor  #: 1: dense attention, by pattern or because it is cheaper
    num_vertical: Tensor  #: columns of V
    num_slash: Tensor  #: offsets of S
    num_chunks: Tensor  #: 32-column chunks in the list that all row blocks share
    computed_pairs: Tensor  #: (query, key) pairs that the kernel multiplies
    attended_pairs: Tensor  #: (query, key) pairs that enter the softmax
    causal_pairs: Tensor  #: (query, key) pairs of dense causal attention
    plan_bytes: Tensor  #: bytes of the plan as attention reads it, gathered keys apart
    estimation_bytes: Tensor  #: bytes of scratch of the estimation


@dataclass(frozen=True)
class Prediction:
    """What the cost model says of a head before any data is seen."""

    is_dense: bool  #: dense attention is cheaper
    cost_dense: float  #: in 64 x 32 pieces of one head
    cost_sparse: float  #: estimation, plan and attention, if the lines cluster well
