"""Reports of what was searched, evaluated and timed, from the JSON that the commands write.

    sections = [section_of(read_record(path)) for path in paths]
    Path("report.html").write_text(html_page(sections, "Search and evaluation"), encoding="utf-8")

records.py reads and checks files, pictures.py turns them into what is drawn, section.py into what a
report says; html.py and pdf.py write it. Names, predictions and answers come from models and files:
nothing of them is trusted as markup.
"""

from __future__ import annotations

from .html import html_page
from .pdf import write_pdf
from .records import read_record
from .sections import section_of

__all__ = ["html_page", "read_record", "section_of", "write_pdf"]
