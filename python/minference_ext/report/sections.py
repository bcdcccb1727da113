"""The section of each kind of record."""

from __future__ import annotations

from .evaluation import evaluation_section
from .observations import observations_section
from .records import EvaluationRecord, ObservationRecord, Record, SearchRecord
from .search import search_section
from .section import Section
from .times import times_section


def section_of(record: Record) -> Section:
    """What a report says of a record."""
    if isinstance(record, SearchRecord):
        return search_section(record)
    if isinstance(record, EvaluationRecord):
        return evaluation_section(record)
    if isinstance(record, ObservationRecord):
        return observations_section(record)
    return times_section(record)
