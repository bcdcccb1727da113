"""A report as PDF: pages of text, each picture on a page of its own."""

from __future__ import annotations

import itertools
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

    lines = [_plain(title), ""]
    with matplotlib.rc_context({"text.parse_math": False}), PdfPages(path) as pages:
        for section in sections:
            lines += _lines(section)
            for page in _pages(lines):
                _add_text(pages, page)
            lines = []
            for picture in section.pictures:
                _add_picture(pages, picture)


def _lines(section: Section) -> list[str]:
    title = _plain(section.title)
    lines = [title, "=" * min(_COLUMNS, len(title)), "", *map(_plain, section.conclusion)]
    for content in [*section.tables, Table("What was run", ("", ""), list(section.facts), 2)]:
        rows = [content.head, *content.rows] if any(content.head) else list(content.rows)
        lines += ["", _plain(content.title), "", *_table_lines(rows, content.num_left)]
        lines += ["", _plain(content.note)] if content.note else []
    return lines


def _plain(text: str) -> str:
    """Without what would break a line or a font."""
    return "".join(c if c.isprintable() else " " for c in text)


def _table_lines(rows: Sequence[tuple[str, ...]], num_left: int) -> list[str]:
    """A table no wider than a page: long words go on below themselves, and columns of numbers that
    are too many stand in a table of their own, below."""
    cells = [tuple(map(_plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words, numbers = widths[:num_left], widths[num_left:]
    room = max(_COLUMNS - _total(numbers), _COLUMNS // 2)
    while _total(words) > room:
        words[words.index(max(words))] -= 1
    tables: list[list[int]] = [[]]  # columns of numbers
    for column, width in enumerate(numbers):
        taken = _total([*words, *(numbers[other] for other in tables[-1]), width])
        if tables[-1] and taken > _COLUMNS:
            tables.append([])
        tables[-1].append(column)
    lines: list[str] = []
    for columns in tables:
        cut = []
        for row in cells:
            parts = [_wrapped(text, width) for text, width in zip(row, words, strict=False)]
            parts += [[row[num_left + column]] for column in columns]
            cut += list(itertools.zip_longest(*parts, fillvalue=""))
        lines += [*([""] if lines else []), *table(cut, num_left).splitlines()]
    return lines


def _total(widths: Sequence[int]) -> int:
    """Of columns, each with its gap."""
    return sum(widths) + 2 * len(widths)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(1, width)) or [""]


def _pages(lines: Sequence[str]) -> Iterator[list[str]]:
    """Pages of lines that fit; sentences go on in the next line."""
    cut = [
        part
        for line in lines
        for part in (_wrapped(line, _COLUMNS) if len(line) > _COLUMNS else [line])
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
    # Its pixels go into the file as they are.
    axes.imshow(Image.open(BytesIO(picture.png())).convert("RGB"), interpolation="none")
    axes.set_axis_off()
    axes.set_title(_plain(picture.caption), fontsize=10)
    pages.savefig(figure)
