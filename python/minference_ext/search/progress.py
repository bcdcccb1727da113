"""Layers that a search has finished, on disk, so that it can go on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .choose import Candidate
from .measure import Lines
from .results import HeadResult, candidate_of_record, candidate_record, write_whole

_FORMAT = "minference_search_progress"


@dataclass(frozen=True)
class HeadSample:
    """What one prompt says of one head."""

    candidates: tuple[Candidate, ...]
    lines: Lines | None

    def record(self) -> dict[str, Any]:
        return {
            "candidates": [candidate_record(candidate) for candidate in self.candidates],
            "lines": None if self.lines is None else dataclasses.asdict(self.lines),
        }

    @staticmethod
    def of_record(record: dict[str, Any]) -> HeadSample:
        lines = record["lines"]
        return HeadSample(
            tuple(candidate_of_record(one) for one in record["candidates"]),
            None if lines is None else Lines(**lines),
        )


@dataclass
class Progress:
    """What is known so far. Every layer of every prompt stands in it once it is finished.

    path: None keeps it in memory.
    fingerprint: JSON of all that the result depends on.
    machine: of the run that began.
    samples: per prompt and layer, one entry per query head.
    finished: prompts that went through the whole model.
    results: per layer, one entry per query head, from the last prompt on.
    """

    path: Path | None
    fingerprint: dict[str, Any]
    machine: dict[str, Any]
    samples: list[dict[int, list[HeadSample]]]
    finished: int = 0
    results: dict[int, list[HeadResult]] = field(default_factory=dict)

    @staticmethod
    def begin_or_resume(
        path: Path | None, fingerprint: dict[str, Any], machine: dict[str, Any], num_prompts: int
    ) -> Progress:
        """What the file at `path` holds, or nothing yet.

        Raises:
            ValueError: the file belongs to another search, or is none of ours.
        """
        fresh = Progress(path, fingerprint, machine, [{} for _ in range(num_prompts)])
        if path is None or not path.exists():
            return fresh
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            is_ours = content["format"] == _FORMAT
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise ValueError(f"{path} is not the progress of a search; move it away")
        if content["fingerprint"] != fingerprint:
            raise ValueError(_difference(path, content["fingerprint"], fingerprint))
        return Progress(
            path,
            fingerprint,
            content["machine"],
            [
                {
                    int(layer): [HeadSample.of_record(head) for head in heads]
                    for layer, heads in sample.items()
                }
                for sample in content["samples"]
            ],
            content["finished"],
            {
                int(layer): [HeadResult.of_record(head) for head in heads]
                for layer, heads in content["results"].items()
            },
        )

    def save(self) -> None:
        if self.path is None:
            return
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "machine": self.machine,
            "samples": [_records(sample) for sample in self.samples],
            "finished": self.finished,
            "results": _records(self.results),
        }
        write_whole(self.path, json.dumps(content) + "\n")


def _records(
    layers: dict[int, list[HeadSample]] | dict[int, list[HeadResult]],
) -> dict[int, list[dict[str, Any]]]:
    return {layer: [head.record() for head in heads] for layer, heads in layers.items()}


def _difference(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    for name, value in ours.items():
        if theirs.get(name) != value:
            if isinstance(value, dict) and isinstance(theirs.get(name), dict):
                return _difference(path, theirs[name], value)
            return (
                f"{path} is the progress of another search: its {name} is {theirs.get(name)!r}, "
                f"here it is {value!r}; restart to discard it"
            )
    return f"{path} is the progress of another search; restart to discard it"
