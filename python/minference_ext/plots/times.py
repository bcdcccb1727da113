"""Time of attention by length, and from where on a pattern pays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .canvas import COLOURS, GREY, INK, Target, about, add_title, canvas, shortened, tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MARKERS = "osD^vPX"
_WIDE = 62  # characters of a legend's entry of which two fit side by side
_IN_SECONDS = 10.0  # from here on milliseconds have too many digits


@dataclass(frozen=True)
class Curve:
    """Times of one method."""

    method: str
    lengths: Sequence[int]  #: tokens, ascending
    seconds: Sequence[float]  #: medians
    speedups: Sequence[float]  #: over the baseline, the first curve of the picture
    is_dense: bool = False  #: a baseline, which has no crossover
    crossover: float | None = None  #: tokens from which on it is faster; None: nowhere

    @property
    def is_crossing(self) -> bool:
        """Whether it begins to be faster within the lengths."""
        return self.crossover is not None and self.crossover > self.lengths[0]


def draw_times(path: Target, curves: Sequence[Curve], title: str) -> None:
    """Times on the left, speed-up over the first curve on the right.

    A ring stands at each crossover, which the legend names. Without a dense curve there are none.
    """
    from matplotlib.lines import Line2D

    has_dense = any(curve.is_dense for curve in curves)
    in_seconds = max(second for curve in curves for second in curve.seconds) >= _IN_SECONDS
    labels = [
        f"{shortened(curve.method, 60)}{_remark(curve) if has_dense else ''}" for curve in curves
    ]
    columns = 2 if max(map(len, labels)) <= _WIDE else 1  # of the legend
    with canvas(path, 9.0, 4.3 + 0.19 * math.ceil((len(curves) + 1) / columns)) as figure:
        add_title(figure, title)
        time_axes, speedup_axes = figure.subplots(1, 2)
        handles: list[Line2D] = []
        for (curve, colour, dash, marker), label in zip(_styles(curves), labels, strict=True):
            times = [second * (1 if in_seconds else 1e3) for second in curve.seconds]
            for axes, values in ((time_axes, times), (speedup_axes, curve.speedups)):
                (line,) = axes.plot(
                    curve.lengths, values, dash, color=colour, marker=marker, markersize=4
                )
                if curve.is_crossing:
                    axes.plot([curve.crossover], [_at_crossover(curve, values)], **_RING)
            line.set_label(label)
            handles.append(line)
        if any(curve.is_crossing for curve in curves):
            label = "crossover: from here on faster than dense"
            handles.append(Line2D([], [], label=label, **_RING))
        time_axes.set_title("time, s" if in_seconds else "time, ms")
        speedup_axes.set_title(f"speed-up over {shortened(curves[0].method, 40)}")
        _set_axes(time_axes, speedup_axes)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5)


_RING: Any = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "zorder": 3,
}


def _styles(curves: Sequence[Curve]) -> Iterator[tuple[Curve, str, str, str]]:
    """Each curve with colour, dash and marker; dense ones are grey. Colours begin anew with
    another dash."""
    dense = itertools.cycle(((INK, "-"), (GREY, "--")))
    sparse = itertools.cycle(
        (colour, dash) for dash in ("-", "--", ":", "-.") for colour in COLOURS
    )
    for curve, marker in zip(curves, _MARKERS * len(curves), strict=False):
        colour, dash = next(dense if curve.is_dense else sparse)
        yield curve, colour, dash, marker


def _set_axes(time_axes: Axes, speedup_axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    for axes in (time_axes, speedup_axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
        axes.set_xlabel("prompt, tokens")
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes, ticks, unit in (
        (time_axes, _time_ticks(*time_axes.get_ylim()), ""),
        (speedup_axes, _speedup_ticks(*speedup_axes.get_ylim()), "x"),
    ):
        axes.set_yticks(ticks, [f"{tick:g}{unit}" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())


def _time_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ..., of those powers of ten alone where they are many, finer ones where few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) > 9:
        return [10.0**power for power in powers if low <= 10.0**power <= high]
    return ticks if len(ticks) > 2 else _even_ticks(low, high)


def _speedup_ticks(low: float, high: float) -> list[float]:
    """Powers of two, or finer steps where they would be few."""
    if high > 4 * low:
        return [2.0**power for power in range(-9, 10) if low <= 2.0**power <= high]
    return _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """At most nine, in steps of 1, 2 or 5 with zeros."""
    power = math.floor(math.log10((high - low) / 8))
    step = next(
        step for digit in (1, 2, 5, 10) if (high - low) / (step := digit * 10.0**power) <= 8
    )
    # As many digits as the step has, and no more.
    return [
        round(step * count, max(0, -power))
        for count in range(math.ceil(low / step), math.floor(high / step) + 1)
    ]


def _remark(curve: Curve) -> str:
    if curve.is_dense:
        return ""
    if curve.crossover is None:
        return ": not faster than dense"
    if not curve.is_crossing:
        return ": faster at all lengths"
    return f": faster from {about(curve.crossover)} tokens"


def _at_crossover(curve: Curve, values: Sequence[float]) -> float:
    """Where the curve is there: it is straight between points on log-log axes."""
    length, lengths = curve.crossover or 0.0, curve.lengths
    right = next(index for index, other in enumerate(lengths) if other >= length)
    span = math.log(lengths[right] / lengths[right - 1])
    share = math.log(length / lengths[right - 1]) / span
    return values[right - 1] * math.pow(values[right] / values[right - 1], share)
