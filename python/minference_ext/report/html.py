"""A report as one HTML file: no script, nothing from outside, light and dark, wide and narrow."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from struct import unpack

from .section import Picture, Section, Table

# Keeps even markup that got through from loading or running anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --ink: #222222; --pale: #5f6368; --line: #dddddd; --panel: #f5f7fa;
  --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16191d; --ink: #e6e6e6; --pale: #a0a7b0; --line: #3a4048; --panel: #20252b;
    --accent: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 2rem 0 0.4rem; }
a { color: var(--accent); }
.conclusion {
  background: var(--panel); border-left: 4px solid var(--accent); padding: 0.6rem 1rem;
}
.conclusion p { margin: 0.3rem 0; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption, .note { color: var(--pale); font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap;
}
th { color: var(--pale); font-weight: 600; }
th.word, td.word { text-align: left; }
td.word { white-space: normal; overflow-wrap: break-word; min-width: 6rem; max-width: 24rem; }
@media print { section + section { break-before: page; } figure, tr { break-inside: avoid; } }
"""


def html_page(sections: Sequence[Section], title: str) -> str:
    """The whole page. All text is escaped: names and answers may hold markup.

    Raises:
        ImportError: matplotlib is missing, in a sentence.
    """
    body = [f"<h1>{_text(title)}</h1>"]
    if len(sections) > 1:
        links = "".join(
            f'<li><a href="#section-{number}">{_text(section.title)}</a></li>'
            for number, section in enumerate(sections, 1)
        )
        body.append(f"<nav><ol>{links}</ol></nav>")
    body += [_section(section, number) for number, section in enumerate(sections, 1)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return escape(text, quote=True)


def _section(section: Section, number: int) -> str:
    conclusion = "".join(f"<p>{_text(sentence)}</p>" for sentence in section.conclusion)
    facts = Table("What was run", ("", ""), list(section.facts), 2)
    parts = [
        f'<section id="section-{number}">\n<h2>{_text(section.title)}</h2>',
        f'<div class="conclusion">{conclusion}</div>',
        *map(_figure, section.pictures),
        *map(_table, section.tables),
        _table(facts),
        "</section>",
    ]
    return "\n".join(parts)


def _figure(picture: Picture) -> str:
    png = picture.png()
    data = b64encode(png).decode("ascii")
    caption = _text(picture.caption)
    # As wide and high as the header of the PNG says, for screens of 100 dots an inch.
    width, height = (int(pixels / 1.5) for pixels in unpack(">II", png[16:24]))
    return (
        f'<figure><img alt="{caption}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    head = _row(table.head, "th", table.num_left) if any(table.head) else ""
    rows = "\n".join(_row(row, "td", table.num_left) for row in table.rows)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{_text(table.title)}</h3>\n<div class="scroll"><table>\n{head}\n{rows}\n'
        f"</table></div>{note}"
    )


def _row(cells: Sequence[str], tag: str, num_left: int) -> str:
    words = [' class="word"' if column < num_left else "" for column in range(len(cells))]
    inner = "".join(
        f"<{tag}{word}>{_text(cell)}</{tag}>" for cell, word in zip(cells, words, strict=True)
    )
    return f"<tr>{inner}</tr>"
