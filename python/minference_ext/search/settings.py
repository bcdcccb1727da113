"""What the search is asked for: objective, candidates, budget and how cost is counted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern

Objective = Literal["output", "upstream"]
CostUnit = Literal["tiles", "time"]

#: What competes with a_shape for every head: the paper's final space (table 7).
CANDIDATES = (
    HeadPattern.vertical_slash(30, 2048),
    HeadPattern.vertical_slash(100, 1800),
    HeadPattern.vertical_slash(500, 1500),
    HeadPattern.vertical_slash(3000, 200),
    HeadPattern.block_sparse(100),
)

#: How far from the target a cost may be. Times of equal work differ by some percent.
TOLERANCE: dict[str, float] = {"tiles": 0.02, "time": 0.10}


@dataclass(frozen=True)
class SearchSettings:
    """Settings of `search_patterns`.

    Attributes:
        objective: "output": the least error of the attention output, all candidates at equal cost
            (paper, algorithm 1). "upstream": what the code of microsoft/MInference does instead,
            for comparison; `upstream.py` says it. It reads none of the fields up to `step`.
        sink, window: the budget. a_shape(sink, window) is a candidate, and what it costs on the
            prompt is what every other one may cost. Tokens, >= 0, one of them > 0.
        candidates: the others, of kinds vertical_slash and block_sparse. They say where sizes
            start; `equal_cost.py` says how these change.
        cost: "tiles": the (query, key) pairs that the kernels multiply, partly used tiles included.
            "time": the median time of three runs of a head alone, estimation included; it differs
            from run to run, and with it the result.
        step: by how many lines a size changes, >= 1.
        refine: None, or the attention recall in (0, 1) that every head shall reach, by sizes beyond
            the budget (Qwen2.5-1M, arXiv 2501.15383).
        refine_step: columns and diagonals that each round of it adds, >= 0, one of them > 0.
    """

    objective: Objective = "output"
    sink: int = 1024
    window: int = 4096
    candidates: tuple[HeadPattern, ...] = CANDIDATES
    cost: CostUnit = "tiles"
    step: int = 50
    refine: float | None = None
    refine_step: tuple[int, int] = (2048, 4096)

    def __post_init__(self) -> None:
        """Raises ValueError: a field breaks what is said above."""
        for name, allowed in (("objective", get_args(Objective)), ("cost", get_args(CostUnit))):
            if getattr(self, name) not in allowed:
                _refuse(name, getattr(self, name), f"one of {', '.join(allowed)}")
        _check_sizes("budget", (self.sink, self.window))
        _check_sizes("refine_step", self.refine_step)
        if type(self.step) is not int or self.step < 1:
            _refuse("step", self.step, "a whole number >= 1")
        kinds = {candidate.kind for candidate in self.candidates}
        if not kinds <= {"vertical_slash", "block_sparse"}:
            _refuse("candidates", sorted(kinds), "of kinds vertical_slash and block_sparse")
        if self.refine is not None:
            if not 0.0 < self.refine < 1.0:
                _refuse("refine", self.refine, "None or a recall between 0 and 1")
            if "vertical_slash" not in kinds:
                _refuse("candidates", sorted(kinds), "some of vertical_slash, which refine makes")

    @property
    def budget(self) -> HeadPattern:
        return HeadPattern.a_shape(self.sink, self.window)

    @property
    def tolerance(self) -> float:
        """Relative to the target."""
        return TOLERANCE[self.cost]

    def check_length(self, length: int) -> None:
        """Raises ValueError: the budget leaves nothing to choose on prompts of that many tokens."""
        if self.objective == "output" and self.sink + self.window >= length:
            raise ValueError(
                f"budget: found {self.sink},{self.window}, which covers all {length} tokens of the "
                "prompt and leaves nothing to choose; it must be smaller in sum, or the prompt "
                "longer"
            )

    def record(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {
            **dataclasses.asdict(self),
            "candidates": [pattern_text(candidate) for candidate in self.candidates],
            "refine_step": list(self.refine_step),
        }


def _check_sizes(name: str, sizes: tuple[int, int]) -> None:
    is_valid = len(sizes) == 2 and all(type(size) is int and size >= 0 for size in sizes)
    if not is_valid or not any(sizes):
        _refuse(name, sizes, "two whole numbers >= 0, one of them > 0")


def _refuse(name: str, found: object, allowed: str) -> None:
    raise ValueError(f"{name}: found {found!r}; it must be {allowed}")
