"""Rows of results, kept in a file that is whole after every sample, so that a run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minference_ext.benchmark.machine import describe
from minference_ext.command_line import Failure

from .task import Case

FORMAT, VERSION = "minference_evaluation", 1
FILES = "files"  # among the settings: digests of pattern files, by method
DATA_FILES = "data_files"  # among the settings, where there is data: a digest of its files
_HARDWARE = ("cpu", "gpu", "threads")  # of a machine: what seconds depend on
_AGAIN = "give another --out, or --restart to discard it"


@dataclass(frozen=True)
class Row:
    """One answer; of lm_eval one metric."""

    task: str
    method: str
    length: int  #: tokens that were asked for: of prompt and answer together
    sample: int  #: from 0; of lm_eval the number of examples, 0 for all
    depth: float | None  #: of the needle in the prompt
    metric: str
    score: float
    prediction: str
    answer: str
    seconds: float  #: of the sample, which may have several rows; where a share is, of counting too
    computed_share: float | None  #: of causal pairs, in all layers; counted for first samples only


class Results:
    """Rows of one model under one set of settings, and the file they are in.

    Attributes:
        machine: on which the first of them were found.
        has_other_machine: whether that is not the one at hand, so that seconds cannot be compared.
    """

    def __init__(
        self,
        model: str,
        settings: Mapping[str, Any],
        path: Path | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        """settings: JSON values that rows depend on beside their own fields; path: None for no
        file; device: of the model."""
        self.model = model
        self.settings = dict(settings)
        self.path = path
        self.machine: dict[str, Any] = describe(device)
        self.has_other_machine = False
        # By task, method, length and sample; and all of them as JSON: encoding every row anew for
        # each that is added would take longer than short prompts do.
        self._rows: dict[tuple[str, str, int, int], list[Row]] = {}
        self._encoded: list[str] = []

    @classmethod
    def open(
        cls,
        path: Path | None,
        model: str,
        settings: Mapping[str, Any],
        *,
        device: str = "cpu",
        restart: bool = False,
    ) -> Results:
        """The results at `path` to go on with, or none yet.

        Raises:
            Failure: the file is no record of an evaluation, or one of another model or of other
                settings.
        """
        results = cls(model, settings, path, device=device)
        if path is None or restart or not path.exists():
            return results
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if (record["format"], record["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its format is {record['format']} {record['version']}")
            found = {"model": record["model"], **record["settings"]}
            files = dict(found.get(FILES, {}))
            began_on = dict(record["machine"])
            names = {field.name for field in fields(Row)}
            results._include([Row(**{name: row[name] for name in names}) for row in record["rows"]])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failure(f"{path} is no record of an evaluation ({error}); {_AGAIN}") from error
        for name, wanted in {"model": model, **settings}.items():
            if name == DATA_FILES and found.get(name) != wanted:
                raise Failure(
                    f"{path} has results of --data as its files were before they changed: {_AGAIN}"
                )
            if name != FILES and found.get(name) != wanted:
                raise Failure(
                    f"{path} has results with {name} {json.dumps(found.get(name))}; this run has "
                    f"{json.dumps(wanted)}: {_AGAIN}"
                )
        for method, digest in settings.get(FILES, {}).items():
            if files.setdefault(method, digest) != digest:
                raise Failure(
                    f"{path} has results of {method} as that file was before it changed: {_AGAIN}"
                )
        results.settings[FILES] = files
        results.has_other_machine = any(
            began_on.get(name) != results.machine.get(name) for name in _HARDWARE
        )
        results.machine = began_on
        return results

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self._rows.values() for row in rows]

    def of_case(self, task: str, method: str, length: int, case: Case) -> list[Row]:
        """Rows of one prompt; none where one is missing."""
        of_sample = self._rows.get((task, method, length, case.sample), [])
        rows = [row for row in of_sample if row.depth in case.depths]
        return rows if {row.depth for row in rows} == set(case.depths) else []

    def add(self, rows: Sequence[Row]) -> None:
        """Adds the rows of one prompt, and writes the file."""
        self._include(rows)
        self.save()

    def _include(self, rows: Sequence[Row]) -> None:
        for row in rows:
            key = (row.task, row.method, row.length, row.sample)
            self._rows.setdefault(key, []).append(row)
            self._encoded.append(json.dumps(asdict(row), ensure_ascii=False))

    def _text(self) -> str:
        """All of it as JSON, a row a line."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "machine": self.machine,
            "settings": self.settings,
        }
        begin = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
        rows = ",\n".join(self._encoded)
        return f'{begin},\n "rows": [\n{rows}\n ]\n}}\n'

    def save(self) -> None:
        """Replaces the file in one step: whoever reads it, or ends this run, finds a whole one."""
        if self.path is None:
            return
        written = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            written.write_text(self._text(), encoding="utf-8")
            os.replace(written, self.path)
        finally:
            written.unlink(missing_ok=True)
