"""What came out, as one table and as JSON. The table is a digest; all rows are in the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from .goals import H200, Goals, verdict
from .rows import is_prompt, is_shown, length_text, number, tokens
from .steps import Outcome, Row

# What the project wants of index and plan of 32 query / 8 kv heads on an H200, (1000, 6096).
INDEX_WANTED_MS = {131072: 0.45, 524288: 1.6, 1048576: 3.0}
_STAGES_AT = 131072  # the length whose stages the table shows
_COLUMNS = ("part", "case", "ms", "p10-p90", "achieved", "note")

Line = tuple[str, str, str, str, str, str]


def _milliseconds(row: Row) -> tuple[str, str]:
    def text(key: str) -> str:
        return f"{number(row, key):.4g}"

    return (text("ms"), f"{text('p10')}-{text('p90')}") if "ms" in row else ("", "")


class Ceilings:
    """Copy bandwidth and matmul rate of this device; 0 where they were not measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.copy = self.matmul = 0.0  # bytes, FLOP per ms
        for row in rows:
            if row.get("section") == "copy" and "ms" in row:
                self.copy = max(self.copy, number(row, "bytes") / number(row, "ms"))
            if row.get("section") == "matmul" and "ms" in row:
                self.matmul = number(row, "flop") / number(row, "ms")

    def lines(self) -> Iterator[Line]:
        if self.copy:
            yield "ceilings", "copy, read + written", "", "", f"{self.copy / 1e9:.2f} TB/s", ""
        if self.matmul:
            rate = f"{self.matmul / 1e9:.0f} TFLOP/s"
            yield "ceilings", "matmul 8192^3, bfloat16", "", "", rate, ""

    def fractions(self, row: Row) -> str:
        """Shares of the ceilings that a row with `bytes` or `flop` reaches."""
        parts = []
        if self.copy and number(row, "bytes"):
            share = number(row, "bytes") / number(row, "ms") / self.copy
            parts.append(f"{share:.0%} of copy")
        if self.matmul and number(row, "flop"):
            share = number(row, "flop") / number(row, "ms") / self.matmul
            parts.append(f"{share:.0%} of matmul")
        return ", ".join(parts)


def _index_lines(rows: Sequence[Row], device: str, ceilings: Ceilings) -> Iterator[Line]:
    for row in rows:
        if row.get("section") != "index" or not is_shown(row):
            continue
        if "ms" not in row:
            yield "index", length_text(tokens(row)), "", "", "", str(row.get("note", ""))
            continue
        stage = str(row.get("stage", ""))
        is_total = stage.startswith("index + plan") or row.get("contender")
        if not is_total and not (tokens(row) == _STAGES_AT and row.get("data") == "prompt"):
            continue
        wanted = INDEX_WANTED_MS.get(tokens(row))
        note = str(row.get("note", ""))
        if stage == "index + plan" and row.get("pattern") == "(1000, 6096)" and wanted:
            is_met = verdict(number(row, "ms") <= wanted)
            note = f"wants <= {wanted} ms" + (f": {is_met}" if H200 in device else "")
        name = [length_text(tokens(row)), row.get("pattern"), row.get("data"), stage]
        name.append(row.get("contender"))
        case = " ".join(str(part) for part in name if part)
        yield "index", case, *_milliseconds(row), ceilings.fractions(row), note


def _attention_lines(rows: Sequence[Row], goals: Goals) -> Iterator[Line]:
    attention = [row for row in rows if row.get("section") == "attention" and is_shown(row)]
    dense = {  # the fastest dense attention of others, by length
        length: min(
            (
                number(row, "ms")
                for row in attention
                if tokens(row) == length
                and row.get("pattern") == "dense"
                and str(row.get("contender")).startswith("SDPA")
                and "ms" in row
            ),
            default=0.0,
        )
        for length in {tokens(row) for row in attention}
    }
    said = set()  # one reason serves many rows
    for row in attention:
        if not any(row.get(key) for key in ("ms", "plan_ms", "note")):
            continue
        case = f"{length_text(tokens(row))} {row.get('pattern')}, {row.get('contender')}"
        if not is_prompt(row):
            case = f"{number(row, 'queries'):.0f} queries, {case}"
        if "kernel" in row:
            case += f" ({row['kernel']})"
        achieved, notes = "", []
        if "attended" in row:
            notes.append(f"attends {number(row, 'attended'):.1%}")
        if "plan_ms" in row:
            notes.append(f"plan {number(row, 'plan_ms'):.3g} ms")
        if "ms" in row:
            rates = [
                f"{number(row, key) / number(row, 'ms') / 1e9:.0f}"
                for key in ("useful_flop", "executed_flop")
                if key in row
            ]
            achieved = f"{' / '.join(rates)} TFLOP/s" if rates else ""
            notes += goals.notes(row)
            if dense[tokens(row)] and row.get("pattern") != "dense" and is_prompt(row):
                notes.append(f"{dense[tokens(row)] / number(row, 'ms'):.2f}x of dense SDPA")
        if row.get("note") and row["note"] not in said:
            notes.append(str(row["note"]))
            said.add(row["note"])
        yield "attention", case, *_milliseconds(row), achieved, ", ".join(notes)


def _step_lines(outcomes: Sequence[Outcome]) -> Iterator[Line]:
    for outcome in outcomes:
        if outcome.part == "benchmarks" and outcome.result == "ok":
            continue  # its rows speak
        seconds = f"{outcome.seconds:.1f} s" if outcome.seconds else ""
        yield (
            outcome.part,
            outcome.name,
            "",
            "",
            outcome.result,
            f"{seconds} {outcome.note}".strip(),
        )


def table(outcomes: Sequence[Outcome], device: str) -> str:
    """Columns as `_COLUMNS`; TFLOP/s are useful / executed."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    ceilings = Ceilings(rows)
    lines: list[Sequence[str]] = [_COLUMNS]
    lines += [
        *_step_lines(outcomes),
        *ceilings.lines(),
        *_index_lines(rows, device, ceilings),
        *_attention_lines(rows, Goals(rows, device, ceilings.copy)),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(
    path: Path,
    machine: dict[str, object],
    clocks: dict[str, object],
    outcomes: Sequence[Outcome],
) -> None:
    result: dict[str, object] = {
        "machine": {**machine, "clocks during benchmarks, [least, median, greatest]": clocks},
        "steps": [
            {
                "part": outcome.part,
                "name": outcome.name,
                "result": outcome.result,
                "seconds": round(outcome.seconds, 1),
                "note": outcome.note,
            }
            for outcome in outcomes
        ],
        **{outcome.name: list(outcome.rows) for outcome in outcomes if outcome.rows},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
