"""Reads the values of a row: what a benchmark printed about one measurement."""

from __future__ import annotations

from typing import cast

from .steps import Row


def number(row: Row, key: str) -> float:
    return float(cast(float, row.get(key, 0)))


def tokens(row: Row) -> int:
    """How many keys."""
    return int(number(row, "length"))


def length_text(length: int) -> str:
    if length >= 1 << 20 and length % (1 << 20) == 0:
        return f"{length >> 20}M"
    return f"{length >> 10}K" if length % 1024 == 0 else str(length)


def is_shown(row: Row) -> bool:
    """Whether the table has it: with a warm L2 cache it is in the JSON alone."""
    return row.get("l2", "flushed") == "flushed"


def queries(row: Row) -> int:
    return int(number(row, "queries")) or tokens(row)


def is_prompt(row: Row) -> bool:
    """Whether there are as many queries as keys."""
    return queries(row) == tokens(row)


def rate(row: Row) -> float:
    """TFLOP/s of useful operations."""
    return number(row, "useful_flop") / number(row, "ms") / 1e9
