"""What a report consists of, whatever it is written as."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from minference_ext.plots.canvas import Target, shortened

from .records import Prompt


@dataclass(frozen=True)
class Table:
    """Cells as text, the first row apart."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_left: int  #: columns of words, at the left; those of numbers follow
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """What is drawn when a report is written."""

    caption: str
    draw: Callable[[Target], None]  #: a PNG, to a stream

    def png(self) -> bytes:
        """Raises ImportError where matplotlib is missing, in a sentence."""
        drawn = BytesIO()
        self.draw(drawn)
        return drawn.getvalue()


@dataclass(frozen=True)
class Section:
    """One record."""

    title: str
    conclusion: list[str]  #: sentences computed from the data
    facts: list[tuple[str, str]]  #: what was run: model, settings, machine
    pictures: list[Picture]
    tables: list[Table]


def model_title(subject: str, model: str) -> str:
    """Of a picture, on one line."""
    return f"{subject} {shortened(model, 70)}"


def mean(values: Sequence[float]) -> float:
    """NaN of no values."""
    return sum(values) / len(values) if values else math.nan


def words(values: Mapping[str, Any]) -> str:
    """Settings in a line: name value, name value."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"


def prompts_text(prompts: Sequence[Prompt]) -> str:
    return "; ".join(f"{prompt.name}, {prompt.length} tokens" for prompt in prompts)


def machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"machine, {name}", str(value)) for name, value in machine.items()]
