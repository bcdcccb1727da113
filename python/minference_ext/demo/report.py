"""The results as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence

from minference_ext.command_line import table

from .measure import Result


def results_table(results: Sequence[Result]) -> str:
    head = ("method", "pattern", "prefill", "speed-up", "attention", "speed-up")
    rows = [(*head, "computed", "dense heads", "retrieved", "max |Δ logit|")]
    for result in results:
        is_sparse = result.dense_heads is not None
        difference = result.max_logit_difference
        rows.append(
            (
                result.method,
                result.description,
                f"{result.median_seconds:.3g} s",
                _times(result.speedup),
                f"{result.median_attention_seconds:.3g} s",
                _times(result.attention_speedup),
                # The last tile of a dense row reaches beyond the diagonal.
                f"{min(1.0, result.computed_share):.1%}",
                f"{result.dense_heads}/{result.num_heads}" if is_sparse else "-",
                f"{sum(result.retrieved)}/{len(result.retrieved)}",
                "-" if difference is None or not is_sparse else f"{difference:.4g}",
            )
        )
    return table(rows, num_left=2)


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def conclusion(results: Sequence[Result]) -> str:
    sentences = []
    for result in results:
        if result.dense_heads is None:
            continue
        if result.dense_heads == result.num_heads:
            sentences.append(f"{result.method}: at this length dense is cheaper in every head.")
            continue
        asked, found = len(result.retrieved), sum(result.retrieved)
        needles = f"finds all {asked}" if found == asked else f"finds {found} of {asked}"
        how = f"computing {min(1.0, result.computed_share):.0%} of the attention matrix"
        if result.attention_speedup is not None:
            how += f", at {result.attention_speedup:.2f} times the speed of dense attention"
        sentences.append(f"{result.method} {needles} needles {how}.")
    return "\n".join(sentences) or "Dense attention is the baseline: name a sparse method, too."
