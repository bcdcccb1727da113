"""Patterns as text, as the command line takes and shows them: vertical_slash(1000,6096)."""

from __future__ import annotations

import re
from typing import cast

from .ops import predict
from .patterns import HeadPattern, PatternKind

KINDS = ("dense", "a_shape", "tri_shape", "vertical_slash", "block_sparse")


def pattern_text(pattern: HeadPattern) -> str:
    sizes = ",".join(map(str, pattern.sizes))
    return f"{pattern.kind}({sizes})" if sizes else pattern.kind


def parse_patterns(text: str) -> list[HeadPattern]:
    """Patterns from "dense,a_shape(1024,4096)".

    Raises:
        ValueError: a name or a size makes no sense.
    """
    patterns = []
    for item in re.split(r",(?![^(]*\))", text):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\(([\d\s,]*)\))?\s*", item)
        if match is None or match.group(1) not in KINDS:
            raise ValueError(f"{item!r} is no pattern; known: {', '.join(KINDS)}")
        sizes = tuple(int(size) for size in (match.group(2) or "").split(",") if size.strip())
        pattern = HeadPattern(cast(PatternKind, match.group(1)), sizes)
        predict(pattern, 0, 0)  # refuses sizes out of range
        patterns.append(pattern)
    return patterns
