"""Data files that tasks read; the package brings none and fetches none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from minference_ext.command_line import Failure

_SUFFIXES = (".txt", ".jsonl", ".yaml")  # not .json, which results may be kept beside them as


def text_files(task: str, path: Path | None) -> list[Path]:
    """The file at `path`, or the .txt files of the folder in the order of their names.

    Raises:
        Failure: there are none.
    """
    if path is None:
        raise Failure(f"{task} needs text: give --data a .txt file or a folder of them")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        found = "a folder without .txt files" if path.is_dir() else "no file"
        raise Failure(f"{task} needs text: --data is {path}, {found}")
    return files


def read_text(task: str, path: Path | None) -> str:
    """All of `text_files`, one after the other.

    Raises:
        Failure: there are none, or they hold nothing but space.
    """
    text = "\n".join(read_file(file) for file in text_files(task, path)).strip()
    if not text:
        raise Failure(f"{task} needs text: --data is {path}, where all is empty")
    return text


def read_file(path: Path) -> str:
    """Raises Failure where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not text in UTF-8: {error.reason}") from error


def data_file(task: str, folder: Path | None, names: Sequence[str], source: str) -> Path:
    """The first of `names` that is in the folder.

    source: where to fetch it, for the sentence.

    Raises:
        Failure: it is missing.
    """
    for name in names:
        if folder is not None and (folder / name).is_file():
            return folder / name
    where = f"is {folder}, where it is missing" if folder is not None else "is not given"
    raise Failure(
        f"{task} needs {names[0]} in the folder of --data, which {where}; fetch it from {source}"
    )


def digest(path: Path) -> str:
    """Changes when a file that tasks read from `path` comes, goes or gets another size.

    path: a file, or a folder; in folders within it nothing is looked at.
    """
    files = [path] if path.is_file() else sorted(path.iterdir())
    sizes = [
        (file.name, file.stat().st_size)
        for file in files
        if file == path or (file.suffix in _SUFFIXES and file.is_file())
    ]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Raises Failure where it is no JSON."""
    try:
        return json.loads(read_file(path))
    except json.JSONDecodeError as error:
        raise Failure(f"{path} is no JSON: {error}") from error


class JsonLines(Sequence[dict[str, Any]]):
    """The objects of a .jsonl file, read when they are asked for: examples are long."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        """fields: those that every object must have."""
        self._path = path
        self._fields = fields
        with path.open("rb") as file:
            self._begins = list(self._line_begins(file))

    @staticmethod
    def _line_begins(lines: Iterator[bytes]) -> Iterator[tuple[int, int]]:
        """(line number, offset) of all lines with more than space."""
        offset = 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, offset
            offset += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, offset = self._begins[index]
        with self._path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            entry = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise Failure(f"{self._path}, line {number}: no JSON: {error}") from error
        missing = [name for name in self._fields if name not in entry]
        if missing:
            raise Failure(f"{self._path}, line {number}: lacks {', '.join(missing)}")
        result: dict[str, Any] = entry
        return result
