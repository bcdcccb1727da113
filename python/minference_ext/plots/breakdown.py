"""What the time of a prefill is spent on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .canvas import BLUE, GREEN, ORANGE, Target, add_title, canvas, shortened, tokens

_COLOURS = {"estimate": ORANGE, "plan": GREEN, "attention": BLUE, "rest": "#C4C4C4"}


@dataclass(frozen=True)
class Spent:
    """One method at one length, in seconds."""

    length: int  #: tokens
    method: str
    estimate: float  #: finding what to attend
    plan: float  #: turning it into lists for the kernel
    attention: float
    rest: float  #: of the model

    @property
    def total(self) -> float:
        return self.estimate + self.plan + self.attention + self.rest


def draw_breakdown(path: Target, spent: Sequence[Spent], title: str) -> None:
    """One panel per length, with a scale of its own; one bar per method."""
    lengths = sorted({bar.length for bar in spent})
    methods = list(dict.fromkeys(bar.method for bar in spent))
    columns = min(3, len(lengths))
    rows = math.ceil(len(lengths) / columns)
    with canvas(path, 9.0, rows * (0.75 + 0.27 * len(methods)) + 1.1) as figure:
        add_title(figure, title)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, length in zip(panels.flat, lengths, strict=False):
            bars = [bar for bar in spent if bar.length == length]
            in_seconds = max(bar.total for bar in bars) >= 1
            places = [methods.index(bar.method) for bar in bars]
            lefts = [0.0] * len(bars)
            for part, colour in _COLOURS.items():
                widths = [getattr(bar, part) * (1 if in_seconds else 1e3) for bar in bars]
                axes.barh(places, widths, left=lefts, color=colour, height=0.72, label=part)
                lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
            for place, end in zip(places, lefts, strict=True):
                text = f" {end:.3g}" if end < 1000 else f" {end:.0f}"
                axes.text(end, place, text, va="center", fontsize=7.5)
            axes.set_xlim(0, 1.18 * max(lefts))
            axes.set_yticks(
                range(len(methods)), [shortened(method, 40) for method in methods], fontsize=8
            )
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.set_title(f"{tokens(length)} tokens, {'s' if in_seconds else 'ms'}")
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=7.5)
        for axes in panels.flat[len(lengths) :]:
            axes.set_visible(False)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
