"""What came out, as one table and as JSON. The table is a digest; all rows are in the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from .steps import Outcome, Row

# What the project wants of index and plan of 32 query / 8 kv heads on an H200, (1000, 6096).
INDEX_WANTED_MS = {131072: 0.45, 524288: 1.6, 1048576: 3.0}
INDEX_WANTED_ON = "H200"
# Of attention alone: its rate of useful operations, over that of our own dense attention.
CLUSTERED_WANTED = {"clustered 90%": 0.94, "clustered 95%": 0.92, "clustered 98%": 0.85}
DENSE_WANTED = 1.0  # times as fast as SDPA's flash backend
_ALONE = "ours, attention alone"
_STAGES_AT = 131072  # the length whose stages the table shows
_COLUMNS = ("part", "case", "ms", "p10-p90", "achieved", "note")

Line = tuple[str, str, str, str, str, str]


def length_text(length: int) -> str:
    if length >= 1 << 20 and length % (1 << 20) == 0:
        return f"{length >> 20}M"
    return f"{length >> 10}K" if length % 1024 == 0 else str(length)


def _number(row: Row, key: str) -> float:
    return float(cast(float, row.get(key, 0)))


def _length(row: Row) -> int:
    return int(_number(row, "length"))


def _milliseconds(row: Row) -> tuple[str, str]:
    def text(key: str) -> str:
        return f"{_number(row, key):.4g}"

    return (text("ms"), f"{text('p10')}-{text('p90')}") if "ms" in row else ("", "")


class Ceilings:
    """Copy bandwidth and matmul rate of this device; 0 where they were not measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.copy = self.matmul = 0.0  # bytes, FLOP per ms
        for row in rows:
            if row.get("section") == "copy" and "ms" in row:
                self.copy = max(self.copy, _number(row, "bytes") / _number(row, "ms"))
            if row.get("section") == "matmul" and "ms" in row:
                self.matmul = _number(row, "flop") / _number(row, "ms")

    def lines(self) -> Iterator[Line]:
        if self.copy:
            yield "ceilings", "copy, read + written", "", "", f"{self.copy / 1e9:.2f} TB/s", ""
        if self.matmul:
            rate = f"{self.matmul / 1e9:.0f} TFLOP/s"
            yield "ceilings", "matmul 8192^3, bfloat16", "", "", rate, ""

    def fractions(self, row: Row) -> str:
        """Shares of the ceilings that a row with `bytes` or `flop` reaches."""
        parts = []
        if self.copy and _number(row, "bytes"):
            share = _number(row, "bytes") / _number(row, "ms") / self.copy
            parts.append(f"{share:.0%} of copy")
        if self.matmul and _number(row, "flop"):
            share = _number(row, "flop") / _number(row, "ms") / self.matmul
            parts.append(f"{share:.0%} of matmul")
        return ", ".join(parts)


def _is_shown(row: Row) -> bool:
    return row.get("l2", "flushed") == "flushed"


def _index_lines(rows: Sequence[Row], device: str, ceilings: Ceilings) -> Iterator[Line]:
    for row in rows:
        if row.get("section") != "index" or not _is_shown(row):
            continue
        if "ms" not in row:
            yield "index", length_text(_length(row)), "", "", "", str(row.get("note", ""))
            continue
        stage = str(row.get("stage", ""))
        is_total = stage.startswith("index + plan") or row.get("contender")
        if not is_total and not (_length(row) == _STAGES_AT and row.get("data") == "prompt"):
            continue
        wanted = INDEX_WANTED_MS.get(_length(row))
        note = str(row.get("note", ""))
        if stage == "index + plan" and row.get("pattern") == "(1000, 6096)" and wanted:
            verdict = "met" if _number(row, "ms") <= wanted else "MISSED"
            note = f"wants <= {wanted} ms" + (f": {verdict}" if INDEX_WANTED_ON in device else "")
        name = [length_text(_length(row)), row.get("pattern"), row.get("data"), stage]
        name.append(row.get("contender"))
        case = " ".join(str(part) for part in name if part)
        yield "index", case, *_milliseconds(row), ceilings.fractions(row), note


def _wanted(ratio: float, of: str, wanted: float) -> str:
    return f"{ratio:.3f}x of {of}, wants >= {wanted}: {'met' if ratio >= wanted else 'MISSED'}"


def _is_prompt(row: Row) -> bool:
    """Whether there are as many queries as keys."""
    return _number(row, "queries") in (0, _length(row))


def _goals(row: Row, attention: Sequence[Row]) -> Iterator[str]:
    """What the project wants of `row`, if anything, and whether it is so."""

    def is_dense(peer: Row) -> bool:
        is_timed = "ms" in peer and _is_prompt(peer)
        return is_timed and peer.get("pattern") == "dense" and _length(peer) == _length(row)

    wanted = CLUSTERED_WANTED.get(str(row.get("pattern")))
    for peer in filter(is_dense, attention):
        if row.get("contender") == peer.get("contender") == _ALONE and _is_prompt(row) and wanted:
            rate, of_dense = (_number(r, "useful_flop") / _number(r, "ms") for r in (row, peer))
            yield _wanted(rate / of_dense, "dense's rate", wanted)
        is_flash = str(peer.get("contender")).startswith("SDPA flash")
        if row.get("contender") == "ours, torch" and row.get("pattern") == "dense" and is_flash:
            yield _wanted(_number(peer, "ms") / _number(row, "ms"), "SDPA flash", DENSE_WANTED)


def _attention_lines(rows: Sequence[Row]) -> Iterator[Line]:
    attention = [row for row in rows if row.get("section") == "attention" and _is_shown(row)]
    dense = {  # the fastest dense attention of others, by length
        length: min(
            (
                _number(row, "ms")
                for row in attention
                if _length(row) == length
                and row.get("pattern") == "dense"
                and not str(row.get("contender")).startswith("ours")
                and "ms" in row
            ),
            default=0.0,
        )
        for length in {_length(row) for row in attention}
    }
    said = set()  # one reason serves many rows
    for row in attention:
        if not any(row.get(key) for key in ("ms", "plan_ms", "note")):
            continue
        case = f"{length_text(_length(row))} {row.get('pattern')}, {row.get('contender')}"
        if not _is_prompt(row):
            case = f"{_number(row, 'queries'):.0f} queries, {case}"
        achieved, notes = "", []
        if "attended" in row:
            notes.append(f"attends {_number(row, 'attended'):.1%}")
        if "plan_ms" in row:
            notes.append(f"plan {_number(row, 'plan_ms'):.3g} ms")
        if "ms" in row:
            rates = [
                f"{_number(row, key) / _number(row, 'ms') / 1e9:.0f}"
                for key in ("useful_flop", "executed_flop")
                if key in row
            ]
            achieved = f"{' / '.join(rates)} TFLOP/s" if rates else ""
            notes += _goals(row, attention)
            if dense[_length(row)] and row.get("pattern") != "dense" and _is_prompt(row):
                notes.append(f"{dense[_length(row)] / _number(row, 'ms'):.2f}x of dense SDPA")
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
        *_attention_lines(rows),
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
