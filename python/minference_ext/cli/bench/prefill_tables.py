"""The tables of minference bench prefill."""

from __future__ import annotations

from minference_ext.benchmark import published
from minference_ext.benchmark.attention import SDPA
from minference_ext.benchmark.prefill import Row
from minference_ext.benchmark.timing import spread
from minference_ext.command_line import table

from .report import crossovers_text, seconds_text


def tables(rows: list[Row], points: dict[str, float | None]) -> str:
    """All that was measured; points: crossovers, by method."""
    parts = [_rows_text(rows), f"Seconds by length\n{_wide_text(rows)}"]
    if any(row.breakdown is not None for row in rows):
        parts.append(f"Where the time goes, seconds\n{_breakdown_text(rows)}")
    shortest = min(row.length for row in rows)
    parts.append(crossovers_text(points, shortest, "dense prefill"))
    return "\n\n".join(part for part in parts if part)


def _rows_text(rows: list[Row]) -> str:
    cells = [("tokens", "method", "s", "p10", "p90", "speed-up", "computed", "peak MiB")]
    for row in rows:
        low, high = spread(row.seconds)
        cells.append(
            (
                str(row.length),
                row.method,
                seconds_text(row.median_seconds),
                seconds_text(low),
                seconds_text(high),
                f"{row.speedup:.2f}x",
                # The last tile of a dense row reaches beyond the diagonal.
                "-" if row.method == SDPA else f"{min(1.0, row.computed_share):.1%}",
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            )
        )
    return table(cells, num_left=2)


def _wide_text(rows: list[Row]) -> str:
    methods = list(dict.fromkeys(row.method for row in rows))
    seconds = {(row.length, row.method): seconds_text(row.median_seconds) for row in rows}
    cells: list[tuple[str, ...]] = [("tokens", *methods)]
    lengths = dict.fromkeys(row.length for row in rows)
    cells += [(str(length), *(seconds[length, method] for method in methods)) for length in lengths]
    return table(cells, num_left=0)


def _breakdown_text(rows: list[Row]) -> str:
    cells: list[tuple[str, ...]] = [
        ("tokens", "method", "estimate", "plan", "attention", "rest", "prefill")
    ]
    for row in rows:
        if row.breakdown is None:
            continue
        parts = row.breakdown
        numbers = (parts.estimate, parts.plan, parts.attention, parts.rest, row.median_seconds)
        cells.append((str(row.length), row.method, *map(seconds_text, numbers)))
    return table(cells, num_left=2)


def published_table() -> str:
    """The published times, labelled so."""
    cells: list[tuple[str, ...]] = [("tokens", *published.METHODS)]
    cells += [(row.length, *(f"{value:.3f}" for value in row.seconds)) for row in published.ROWS]
    return (
        f"Published, not measured here: seconds of {published.SUBJECT}\n"
        f"{table(cells, num_left=0)}\n({published.PROTOCOL})"
    )
