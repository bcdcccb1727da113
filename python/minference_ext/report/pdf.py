"""A report as PDF: pages of text, each picture on a page of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from minference_ext.command_line import table
from minference_ext.plots.canvas import INK, MISSING, is_available

from .section import Picture, Section, Table

_PAGE = (11.69, 8.27)  # inches: A4, the long side across
_MARGIN = 0.05  # of the page's sides
_LINES, _COLUMNS = 54, 156  # of text on a page
_FONT = 8.0


def write_pdf(path: Path, sections: Sequence[Section], title: str) -> None:
    """Writes the report, one section after the other.

    Raises:
        ImportError: matplotlib is missing, in a sentence.
    """
    if not is_available():
        raise ImportError(MISSING)
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

    lines = [title, ""]
    with matplotlib.rc_context({"text.parse_math": False}), PdfPages(path) as pages:
        for section in sections:
            lines += _lines(section)
            for page in _pages(lines):
                _add_text(pages, page)
            lines = []
            for picture in section.pictures:
                _add_picture(pages, picture)


def _lines(section: Section) -> list[str]:
    lines = [section.title, "=" * min(_COLUMNS, len(section.title)), ""]
    for sentence in section.conclusion:
        lines += textwrap.wrap(_plain(sentence), _COLUMNS)
    tables = [*section.tables, Table("What was run", ("", ""), list(section.facts), 2)]
    for content in tables:
        lines += ["", content.title, ""]
        rows = [tuple(_plain(cell) for cell in row) for row in (content.head, *content.rows)]
        lines += table(rows if any(content.head) else rows[1:], content.num_left).splitlines()
        lines += ["", content.note] if content.note else []
    return lines


def _plain(text: str) -> str:
    """Without what would break a line or a font."""
    return "".join(c if c.isprintable() else " " for c in text)


def _pages(lines: Sequence[str]) -> Iterator[list[str]]:
    """Pages of lines that fit; longer ones go on in the next line."""
    cut = [
        part
        for line in lines
        for part in textwrap.wrap(line, _COLUMNS, drop_whitespace=False) or [""]
    ]
    for first in range(0, len(cut), _LINES):
        yield cut[first : first + _LINES]


def _add_text(pages: Any, lines: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_PAGE)
    figure.text(
        _MARGIN,
        1 - _MARGIN,
        "\n".join(lines),
        family="DejaVu Sans Mono",
        fontsize=_FONT,
        color=INK,
        va="top",
        linespacing=1.25,
    )
    pages.savefig(figure)


def _add_picture(pages: Any, picture: Picture) -> None:
    from matplotlib.figure import Figure
    from PIL import Image  # comes with matplotlib

    figure = Figure(figsize=_PAGE)
    axes = figure.add_axes((_MARGIN, _MARGIN, 1 - 2 * _MARGIN, 1 - 3 * _MARGIN))
    axes.imshow(Image.open(BytesIO(picture.png)).convert("RGB"), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_title(picture.caption, fontsize=10)
    pages.savefig(figure, dpi=200)
