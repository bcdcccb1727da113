"""The methods the demo compares, and the patterns of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minference_ext.patterns import HeadPattern

if TYPE_CHECKING:  # it needs transformers
    from minference_ext.testing import RetrievalSpec

FULL_LENGTH = 32768  # from here on patterns have the sizes of the MInference paper
SPARSE_METHODS = ("a_shape", "vertical_slash", "per_head")
METHODS = ("dense", *SPARSE_METHODS)

Patterns = HeadPattern | list[list[HeadPattern]]


def _scaled(size: int, length: int) -> int:
    return max(1, size * min(length, FULL_LENGTH) // FULL_LENGTH)


def method_patterns(method: str, spec: RetrievalSpec, length: int) -> Patterns | None:
    """None: PyTorch's dense attention."""
    from minference_ext.testing import default_patterns

    if method == "a_shape":
        return HeadPattern.a_shape(_scaled(1024, length), _scaled(4096, length))
    if method == "vertical_slash":
        return HeadPattern.vertical_slash(_scaled(1000, length), _scaled(6096, length))
    if method == "per_head":
        return default_patterns(spec)
    return None


def head_patterns(spec: RetrievalSpec, length: int) -> list[list[HeadPattern]]:
    """Those of "per_head" with sizes for a prompt of this length, [num_layers][num_heads].

    Sinks stay. An estimation takes the first 30 columns and the nearest 100 diagonals before all
    others: these heads need no more diagonals, but columns for the needles.
    """
    from minference_ext.testing import default_patterns

    def fitted(pattern: HeadPattern) -> HeadPattern:
        first, second = pattern.sizes
        if pattern.kind == "a_shape":
            return HeadPattern.a_shape(first, min(second, max(64, length // 8)))
        return HeadPattern.vertical_slash(max(64, _scaled(first, length)), 100)

    return [[fitted(pattern) for pattern in row] for row in default_patterns(spec)]


def description(method: str, patterns: Patterns | None) -> str:
    if patterns is None:
        return "PyTorch SDPA"
    if not isinstance(patterns, HeadPattern):
        num_patterns = len({pattern for row in patterns for pattern in row})
        return f"{num_patterns} patterns, by role of head"
    first, second = patterns.sizes
    if method == "a_shape":
        return f"sink {first}, window {second}"
    return f"{first} columns, {second} diagonals"
