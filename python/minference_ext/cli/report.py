"""minference report: searches, evaluations and times as one HTML or PDF file."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from minference_ext.command_line import Failure, Parser, output_file
from minference_ext.plots.canvas import MISSING, is_available
from minference_ext.report import html_page, read_record, section_of, write_pdf
from minference_ext.report.records import Record
from minference_ext.report.section import Section

EPILOG = """Reads what minference search writes beside its patterns (patterns.search.json), what
minference eval --out, minference bench --json and minference plot observations --json write. The
HTML file stands alone: pictures are inside of it, and it loads nothing.

examples:
  minference report patterns.search.json --out report.html
  minference report patterns.search.json eval.json prefill.json --out report.html
  minference report eval.json --out report.pdf --title 'Llama 3.1 8B, 32K tokens'"""

_ENDINGS = (".html", ".pdf")


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "report",
        help="one HTML or PDF file of what search, eval and bench measured",
        description="Tables, pictures and conclusions of records, in one file.",
        epilog=EPILOG,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument(
        "--out", type=_report_file, required=True, metavar="FILE", help=".html or .pdf, replaced"
    )
    parser.add_argument("--title", metavar="TEXT", help="of the report (default: its subjects)")
    parser.set_defaults(command=_report)


def _report_file(text: str) -> Path:
    if not is_available():
        raise argparse.ArgumentTypeError(MISSING)
    if not text.endswith(_ENDINGS):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(_ENDINGS)}")
    return output_file(text)


def _report(arguments: argparse.Namespace) -> int:
    try:
        records = [read_record(path) for path in arguments.files]
    except ValueError as error:
        raise Failure(str(error)) from error
    sections = _sections(arguments.files, records)
    title = arguments.title or _title(sections)
    if arguments.out.suffix == ".pdf":
        write_pdf(arguments.out, sections, title)
    else:
        arguments.out.write_text(html_page(sections, title), encoding="utf-8")
    print(f"Report: {arguments.out}")
    return 0


def _sections(paths: list[Path], records: list[Record]) -> list[Section]:
    """Each says which file it is of; where titles are the same, in the title."""
    sections = [section_of(record) for record in records]
    count = Counter(section.title for section in sections)
    return [
        replace(
            section,
            title=f"{section.title} ({path})" if count[section.title] > 1 else section.title,
            facts=[("file", str(path)), *section.facts],
        )
        for path, section in zip(paths, sections, strict=True)
    ]


def _title(sections: list[Section]) -> str:
    """The subjects of the sections, without what of."""
    subjects = dict.fromkeys(section.title.partition(":")[0] for section in sections)
    return f"Sparse prefill: {', '.join(subjects)}"
