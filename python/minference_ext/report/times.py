"""What a report says of the times of prefills, or of attention alone."""

from __future__ import annotations

from functools import partial

from minference_ext.plots import draw_breakdown, draw_times
from minference_ext.plots.canvas import tokens

from . import pictures
from .records import PrefillRecord, TimesRecord, Timing
from .section import Picture, Section, Table, machine_facts, model_title


def times_section(record: TimesRecord) -> Section:
    is_prefill = isinstance(record, PrefillRecord)
    title = times_title(record)
    curves = pictures.curves(record.rows, record.crossovers)
    drawn = [
        Picture(
            "Time by length; a ring where a method begins to be faster than dense attention",
            partial(draw_times, curves=curves, title=title),
        )
    ]
    has_parts = any(row.breakdown is not None for row in record.rows)
    if has_parts:
        drawn.append(
            Picture(
                "What the time is spent on",
                partial(draw_breakdown, spent=pictures.spent(record), title=title),
            )
        )
    return Section(
        title=f"{'Prefill' if is_prefill else 'Attention'}: {record.subject}",
        conclusion=_times_sentences(record),
        facts=[
            ("subject", record.subject),
            ("dtype", record.dtype),
            ("rounds", str(record.rounds)),
            *machine_facts(record.machine),
        ],
        pictures=drawn,
        tables=[_times_table(record, has_parts)],
    )


def times_title(record: TimesRecord) -> str:
    """Of a picture."""
    is_prefill = isinstance(record, PrefillRecord)
    of = "Time of a prefill:" if is_prefill else "Time of attention in"
    return f"{model_title(of, record.subject)}, {record.dtype}"


def _times_sentences(record: TimesRecord) -> list[str]:
    longest = max(row.length for row in record.rows)
    shortest = min(row.length for row in record.rows)
    baseline, dense = "PyTorch's attention", "dense attention"
    if isinstance(record, PrefillRecord):
        baseline, dense = f"a prefill with {baseline}", "a dense one"
    sentences = []
    for row in record.rows:
        if row.length != longest or row.method in pictures.BASELINES:
            continue
        where = ""
        if row.method in record.crossovers:
            point = record.crossovers[row.method]
            if point is None:
                where = f"; it is not faster than {dense} there"
            elif point <= shortest:
                where = f"; it is faster than {dense} at all lengths"
            else:
                where = f"; it is faster than {dense} from {point:.0f} tokens on"
        sentences.append(
            f"{row.method} takes {_seconds(row.median_seconds)} for {tokens(longest)} tokens, "
            f"{row.speedup:.2f} times as fast as {baseline}{where}."
        )
    if not sentences:
        sentences = ["Dense attention alone was timed."]
    if isinstance(record, PrefillRecord) and not record.is_complete:
        sentences.append(f"The benchmark ended early, behind {tokens(longest)} tokens.")
    return sentences


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"
    return f"{1e3 * value:.3g} ms"


def _times_table(record: TimesRecord, has_parts: bool) -> Table:
    head: tuple[str, ...] = ("method", "tokens", "time, median", "speed-up")
    has_memory = any(row.peak_bytes is not None for row in record.rows)
    if has_memory:
        head += ("peak memory",)
    if has_parts:
        head += ("estimate", "plan", "attention", "rest")
    rows = []
    for row in record.rows:
        cells = [
            pictures.BASELINES.get(row.method, row.method),
            str(row.length),
            _seconds(row.median_seconds),
            f"{row.speedup:.2f}x",
        ]
        if has_memory:
            cells.append("-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f} MiB")
        if has_parts:
            cells += _parts(row)
        rows.append(tuple(cells))
    note = f"medians of {record.rounds} rounds"
    return Table("Times", head, rows, 1, note)


def _parts(row: Timing) -> list[str]:
    parts = row.breakdown
    if parts is None:
        return ["-"] * 4
    return [
        _seconds(value) if value else "0"
        for value in (parts.estimate, parts.plan, parts.attention, parts.rest)
    ]
