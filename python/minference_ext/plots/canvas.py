"""Figures without pyplot: nothing global is touched, and no display is needed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from matplotlib.figure import Figure

#: Where a picture goes: a file, or a stream of bytes.
Target: TypeAlias = Path | IO[bytes]

MISSING = 'pictures need matplotlib: pip install matplotlib (or "minference_ext[plot]")'

# Okabe and Ito's colours, which colour-blind readers can tell apart; the dark ones first.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
ORANGE, SKY, YELLOW, GREY = "#E69F00", "#56B4E9", "#F0E442", "#7F7F7F"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
INK = "#222222"

_DPI = 150
_TITLE = 11.0  # points
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a model's name may have a dollar sign in it
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def is_available() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def canvas(path: Target, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, saved as PNG to `path` at the end.

    Raises:
        ImportError: matplotlib is missing; the sentence says how to install it.
    """
    if not is_available():
        raise ImportError(MISSING)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # comes with matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        agg = FigureCanvasAgg(figure)
        yield figure
        agg.draw()
        size, pixels = agg.get_width_height(), agg.buffer_rgba()
        image = Image.frombuffer("RGBA", size, pixels, "raw", "RGBA", 0, 1).convert("RGB")
    # A palette makes files a third as large, and nobody sees the difference. Maximum coverage keeps
    # the ends of colour scales, which few pixels have.
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    palette.save(path, format="PNG")


# ---- Text ----------------------------------------------------------------------------------------


def add_title(figure: Figure, title: str) -> None:
    """Above the whole picture; in a smaller font if it is wider than that."""
    text = figure.suptitle(title, fontsize=_TITLE)
    share = text.get_window_extent().width / figure.bbox.width
    if share > 0.98:
        text.set_fontsize(_TITLE * 0.98 / share)


def tokens(count: float) -> str:
    """A number of tokens, short where that says the same: 512, 1K, 32K, 1M, but 3000."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit and count % unit == 0:
            return f"{count / unit:.0f}{name}"
    return f"{count:.0f}"


def about(count: float) -> str:
    """A number of tokens that was estimated: 512, 1K, 2.1K, 51K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f}{name}" if value >= 10 else f"{value:.2g}{name}"
    return f"{count:.0f}"


def percent(share: float) -> str:
    """One digit behind the point, but 99.96% is >99.9% and 0.04% is <0.1%: what is not all does not
    read 100.0%, nor what is not nothing 0.0%."""
    if math.isnan(share):
        return "-"
    text = f"{share:.1%}"
    if text == "100.0%" and round(share, 4) < 1:
        return ">99.9%"
    if text == "0.0%" and round(share, 4) > 0:
        return "<0.1%"
    return text


def shortened(text: str, most: int) -> str:
    """Text from a file in one line of at most that many characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def in_lines(name: str, width: int, most: int = 2) -> str:
    """A method's name in at most that many lines of `width` characters, cut behind commas: methods
    that differ in their last parameter alone can be told apart."""
    pieces = shortened(name, len(name)).replace(",", ",\n").split("\n")
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1] + piece) > width and len(lines) < most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(shortened(line, width) for line in lines)


def every(count: int, most: int) -> int:
    """The step by which `count` ticks become at most `most`."""
    return max(1, math.ceil(count / most))
