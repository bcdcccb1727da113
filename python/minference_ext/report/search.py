"""What a report says of a search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from minference_ext.plots import draw_density, draw_head_patterns
from minference_ext.plots.canvas import percent, shortened

from . import pictures
from .records import SearchedHead, SearchRecord
from .section import (
    Picture,
    Section,
    Table,
    machine_facts,
    mean,
    model_title,
    prompts_text,
    words,
)

_MOST_ROWS = 12  # of the heads that keep the least
_MOST_CANDIDATES = 24


def search_section(record: SearchRecord) -> Section:
    heads = record.heads
    shares = [min(1.0, head.computed_share) for head in heads]
    worst = min(heads, key=lambda head: head.recall)
    num_dense = sum(head.pattern == "dense" for head in heads)
    dense = {0: "none is dense", 1: "1 is dense"}.get(num_dense, f"{num_dense} are dense")
    title = model_title("Patterns of", record.model)
    layers, counts = pictures.head_patterns(record)
    computed = (
        f"The patterns compute {percent(mean(shares))} of the pairs of dense attention, mean over "
        f"{len(heads)} heads, and keep {percent(mean([head.recall for head in heads]))} of the "
        f"attention; {dense}."
    )
    least = (
        f"The least is kept by layer {worst.layer}, head {worst.head}: {percent(worst.recall)} "
        f"with {worst.pattern}."
    )
    return Section(
        title=f"Search: {record.model}",
        conclusion=[computed, least],
        facts=[
            ("model", record.model),
            ("heads", f"{record.num_layers} layers x {record.num_heads} query heads"),
            ("objective", record.objective),
            ("budget", words(record.budget)),
            ("prompts", prompts_text(record.prompts)),
            *machine_facts(record.machine),
        ],
        pictures=[
            Picture(
                "The pattern of every head",
                partial(draw_head_patterns, layers=layers, counts=counts, title=title),
            ),
            Picture(
                "What the patterns compute and keep, layer by layer",
                partial(draw_density, heads=pictures.densities(record), title=title),
            ),
        ],
        tables=[_patterns_table(heads), _worst_heads_table(heads), *_candidates_table(heads)],
    )


def _patterns_table(heads: Sequence[SearchedHead]) -> Table:
    by_pattern: dict[str, list[SearchedHead]] = {}
    for head in heads:
        by_pattern.setdefault(head.pattern, []).append(head)
    rows = [
        (
            pattern,
            str(len(of)),
            percent(len(of) / len(heads)),
            percent(mean([min(1.0, head.computed_share) for head in of])),
            percent(mean([head.recall for head in of])),
            f"{mean([head.error for head in of]):.3g}",
        )
        for pattern, of in sorted(by_pattern.items(), key=lambda item: -len(item[1]))
    ]
    names = ("pattern", "heads", "share", "computed", "recall", "error")
    return Table("Patterns", names, rows, 1, "computed, recall and error: means over the heads")


def _worst_heads_table(heads: Sequence[SearchedHead]) -> Table:
    rows = [
        (
            head.pattern,
            shortened(head.reason, 80),
            str(head.layer),
            str(head.head),
            percent(min(1.0, head.computed_share)),
            percent(head.recall),
            f"{head.error:.3g}",
        )
        for head in sorted(heads, key=lambda head: head.recall)[:_MOST_ROWS]
    ]
    names = ("pattern", "reason", "layer", "head", "computed", "recall", "error")
    return Table("Heads that keep the least", names, rows, 2)


def _candidates_table(heads: Sequence[SearchedHead]) -> list[Table]:
    """Empty if the record has no candidates."""
    tried: dict[str, list[tuple[float, float, float]]] = {}
    for head in heads:
        for candidate in head.candidates:
            numbers = (min(1.0, candidate.computed_share), candidate.recall, candidate.error)
            tried.setdefault(candidate.pattern, []).append(numbers)
    chosen = Counter(head.pattern for head in heads)
    by_choice = sorted(tried.items(), key=lambda item: (-chosen[item[0]], -len(item[1])))
    rows = [
        (
            pattern,
            str(len(of)),
            str(chosen[pattern]),
            percent(mean([share for share, _, _ in of])),
            percent(mean([recall for _, recall, _ in of])),
            f"{mean([error for _, _, error in of]):.3g}",
        )
        for pattern, of in by_choice[:_MOST_CANDIDATES]
    ]
    names = ("pattern", "heads tried", "chosen", "computed", "recall", "error")
    note = (
        f"{len(rows)} of {len(tried)}, the most chosen first; computed, recall and error: means "
        "over the heads that tried it"
    )
    return [Table("Candidates", names, rows, 1, note)] if rows else []
