"""Figures without pyplot: nothing global is touched, and no display is needed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
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
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        drawn = BytesIO()
        figure.savefig(drawn, format="png", dpi=_DPI)
        # A palette makes files a third as large, and nobody sees the difference. Maximum coverage
        # keeps the ends of colour scales, which few pixels have.
        image = Image.open(drawn).convert("RGB")
        palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
        palette.save(path, format="PNG", optimize=True)


def tokens(count: float) -> str:
    """A number of tokens, short: 512, 1K, 2.1K, 1M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            value = count / unit
            return f"{value:.0f}{name}" if value >= 10 else f"{value:.2g}{name}"
    return f"{count:.0f}"


def shortened(text: str, most: int) -> str:
    """Text from a file in one line of at most that many characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def every(count: int, most: int) -> int:
    """The step by which `count` ticks become at most `most`."""
    return max(1, math.ceil(count / most))
