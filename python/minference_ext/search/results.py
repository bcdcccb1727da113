"""What a search found, and the files that hold it: the patterns, and the record beside them."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minference_ext.model_patterns import FileFormat, ModelPatterns
from minference_ext.pattern_text import parse_patterns, pattern_text
from minference_ext.patterns import HeadPattern

from .choose import Candidate
from .measure import Lines
from .settings import SearchSettings

_FORMAT = "minference_search"
_VERSION = 1


@dataclass(frozen=True)
class HeadResult:
    """What a search chose for one head. Errors, recalls and shares: see measure.py.

    They are those of the winning candidate, means over the prompts; of a pattern that was rewritten
    or enlarged after the choice, those that it has on the last prompt.
    """

    pattern: HeadPattern
    error: float
    recall: float
    computed_share: float
    score: float  #: the error; for objective "upstream" the recall that decided
    reason: str
    candidates: tuple[Candidate, ...] = ()  #: none where there was no choice
    lines: Lines | None = None  #: for objective "output"
    recall_before: float | None = None  #: on the last prompt, before it was enlarged to a recall

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "pattern": pattern_text(self.pattern),
            "candidates": [candidate_record(candidate) for candidate in self.candidates],
        }

    @staticmethod
    def of_record(record: dict[str, Any]) -> HeadResult:
        lines = record["lines"]
        return HeadResult(
            **{
                **record,
                "pattern": parse_patterns(record["pattern"])[0],
                "candidates": tuple(candidate_of_record(one) for one in record["candidates"]),
                "lines": None if lines is None else Lines(**lines),
            }
        )


def candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {**dataclasses.asdict(candidate), "pattern": pattern_text(candidate.pattern)}


def candidate_of_record(record: dict[str, Any]) -> Candidate:
    return Candidate(**{**record, "pattern": parse_patterns(record["pattern"])[0]})


@dataclass(frozen=True)
class SearchResult:
    """What `search_patterns` returns."""

    model: str
    machine: dict[str, Any]  #: on which the search began
    prompts: tuple[tuple[str, int], ...]  #: name, tokens
    settings: SearchSettings
    layers: tuple[tuple[HeadResult, ...], ...]  #: [num_layers][query heads]

    @property
    def patterns(self) -> ModelPatterns:
        return ModelPatterns(
            [[head.pattern for head in heads] for heads in self.layers],
            [[head.score for head in heads] for heads in self.layers],
            model=self.model,
        )

    def record(self) -> dict[str, Any]:
        """All that was measured, for JSON; nothing in it depends on when or how long it ran."""
        settings = self.settings
        budget = {} if settings.objective == "upstream" else _budget(settings)
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "machine": self.machine,
            "prompts": [{"name": name, "length": length} for name, length in self.prompts],
            "objective": settings.objective,
            "budget": budget,
            "refine": settings.refine,
            "refine_step": list(settings.refine_step),
            "num_layers": len(self.layers),
            "num_heads": len(self.layers[0]),
            "heads": [
                {"layer": layer, "head": head, **result.record()}
                for layer, heads in enumerate(self.layers)
                for head, result in enumerate(heads)
            ],
        }

    def save(self, path: Path, *, format: FileFormat = "minference") -> Path:
        """Writes the patterns, as `ModelPatterns.save`, and the record beside them.

        Returns:
            Where the record is.

        Raises:
            FileNotFoundError, ValueError: as `ModelPatterns.save`.
        """
        self.patterns.save(path, format=format)
        record = record_path(path)
        write_whole(record, json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n")
        return record


def record_path(path: Path) -> Path:
    """patterns.search.json beside patterns.json."""
    return path.with_name(f"{path.name.removesuffix('.json')}.search.json")


def write_whole(path: Path, text: str) -> None:
    """Replaces a file as a whole, or on errors leaves it as it is."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _budget(settings: SearchSettings) -> dict[str, Any]:
    return {
        "sink": settings.sink,
        "window": settings.window,
        "cost": settings.cost,
        "tolerance": settings.tolerance,
        "step": settings.step,
    }
