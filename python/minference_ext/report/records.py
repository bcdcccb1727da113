"""What commands write as JSON, read back and checked: records of searches, evaluations and times.

The dataclasses are the formats: their fields are the keys that must be there. More keys may be.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    NewType,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

#: A number that may be infinite, or NaN: a perplexity, and its mean.
Score = NewType("Score", float)


@dataclass(frozen=True)
class Prompt:
    """What a search looked at."""

    name: str
    length: int  #: tokens


@dataclass(frozen=True)
class Candidate:
    """A pattern a search tried on one head."""

    pattern: str
    error: float  #: of the head's output, as the search's objective defines it
    recall: float  #: share of the attention it keeps
    computed_share: float  #: pairs multiplied / pairs of dense causal attention


@dataclass(frozen=True)
class SearchedHead:
    """What a search chose for one head."""

    layer: int
    head: int
    pattern: str
    error: float
    recall: float
    computed_share: float
    reason: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class SearchRecord:
    """`minference search`."""

    FORMAT: ClassVar[str] = "minference_search"

    model: str
    machine: dict[str, Any]
    prompts: list[Prompt]
    objective: str
    budget: dict[str, Any]
    num_layers: int
    num_heads: int  #: of a layer, for queries
    heads: list[SearchedHead]


@dataclass(frozen=True)
class Sample:
    """One answer of a model."""

    task: str
    method: str
    length: int  #: tokens of the prompt
    sample: int
    metric: str
    score: Score
    prediction: str
    answer: str
    seconds: float
    depth: float | None = None  #: of what was asked for, 0: start of the prompt, 1: its end
    computed_share: float | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """`minference eval`."""

    FORMAT: ClassVar[str] = "minference_evaluation"

    model: str
    machine: dict[str, Any]
    rows: list[Sample]


@dataclass(frozen=True)
class Parts:
    """Seconds of a prefill, by what they were spent on."""

    estimate: float
    plan: float
    attention: float
    rest: float


@dataclass(frozen=True)
class Timing:
    """One method at one length."""

    length: int  #: tokens
    method: str
    median_seconds: float
    speedup: float
    seconds: list[float]
    peak_bytes: int | None = None
    breakdown: Parts | None = None


@dataclass(frozen=True)
class PrefillRecord:
    """`minference bench prefill`."""

    FORMAT: ClassVar[str] = "minference_prefill"

    model: str
    machine: dict[str, Any]
    dtype: str
    rounds: int
    rows: list[Timing]
    crossovers: dict[str, Any]  #: tokens from which on a method is faster than dense, or None
    num_layers: int | None = None  #: that ran
    whole_num_layers: int | None = None  #: of the model
    is_complete: bool = True  #: whether all lengths that were asked for are there

    @property
    def subject(self) -> str:
        """The model, or which part of it."""
        if self.num_layers == self.whole_num_layers:
            return self.model
        return f"{self.model}, {self.num_layers} of {self.whole_num_layers} layers"


@dataclass(frozen=True)
class Shape:
    """Of the layer that was timed."""

    num_heads_q: int
    num_heads_kv: int
    head_dim: int


@dataclass(frozen=True)
class AttentionRecord:
    """`minference bench attention`, whose JSON names no format."""

    FORMAT: ClassVar[str] = "minference_attention"

    machine: dict[str, Any]
    shape: Shape
    dtype: str
    rounds: int
    rows: list[Timing]
    crossovers: dict[str, Any]

    @property
    def subject(self) -> str:
        shape = self.shape
        return (
            f"one layer: {shape.num_heads_q} query heads, {shape.num_heads_kv} kv heads, "
            f"head_dim {shape.head_dim}"
        )


@dataclass(frozen=True)
class ObservedHead:
    """How few columns hold the attention of one head."""

    layer: int
    head: int
    coverage: list[float]  #: share of the attention on the prompt's own best columns, by count
    reused: list[float]  #: likewise on as many columns, the best ones of the other prompt
    distances: list[int]  #: neighbouring entries 1, 2, ... keys apart; the last: farther


@dataclass(frozen=True)
class ObservationRecord:
    """`minference plot observations`."""

    FORMAT: ClassVar[str] = "minference_observations"

    model: str
    machine: dict[str, Any]
    prompts: list[Prompt]
    columns: list[int]  #: ascending counts of columns
    heads: list[ObservedHead]


TimesRecord: TypeAlias = PrefillRecord | AttentionRecord
Record: TypeAlias = SearchRecord | EvaluationRecord | TimesRecord | ObservationRecord

VERSION = 1
_RECORDS: dict[str, type[Any]] = {
    record.FORMAT: record
    for record in (
        SearchRecord,
        EvaluationRecord,
        PrefillRecord,
        AttentionRecord,
        ObservationRecord,
    )
}
_READS = f"{', '.join(_RECORDS)}, version {VERSION}"
_Built = TypeVar("_Built")


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, no record, or lacks something; the sentence says where.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Halves of characters, which JSON can hold and no file or font.
        text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is no text ({error.reason}), so it is no JSON") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {_found(content)}; it must be a record: {_READS}")
    name = content.get("format")
    if name is None and {"shape", "rows", "crossovers"} <= content.keys():
        name = AttentionRecord.FORMAT
    elif not isinstance(name, str) or name not in _RECORDS:
        raise ValueError(f"{path}, format: found {_found(name)}; readable are {_READS}")
    elif content.get("version") != VERSION:
        found = _found(content.get("version"))
        raise ValueError(f"{path}, version of {name}: found {found}; readable are {_READS}")
    record: Record = _built(_RECORDS[name], str(path), content)
    _check_numbers(record, path)
    return record


def _check_numbers(record: Record, path: Path) -> None:
    """Raises where a list is empty, or numbers do not fit each other."""
    names = ("rows",) if hasattr(record, "rows") else ("heads", "prompts")
    for name in names:
        if not getattr(record, name):
            raise ValueError(f"{path}, {name}: found none; there must be one or more")
    if isinstance(record, SearchRecord):
        _check_search(record, path)
    elif isinstance(record, ObservationRecord):
        _check_observations(record, path)
    elif not isinstance(record, EvaluationRecord):
        _check_times(record, path)


def _check_search(record: SearchRecord, path: Path) -> None:
    for number, head in enumerate(record.heads):
        if not (0 <= head.layer < record.num_layers and 0 <= head.head < record.num_heads):
            raise ValueError(
                f"{path}, heads[{number}]: found layer {head.layer}, head {head.head}; the record "
                f"has {record.num_layers} layers with {record.num_heads} heads"
            )


def _check_observations(record: ObservationRecord, path: Path) -> None:
    columns = record.columns
    if not columns or columns[0] < 1 or columns != sorted(set(columns)):
        raise ValueError(f"{path}, columns: found {columns}; it must be ascending counts >= 1")
    for number, head in enumerate(record.heads):
        for name in ("coverage", "reused"):
            count = len(getattr(head, name))
            if count != len(columns):
                raise ValueError(
                    f"{path}, heads[{number}].{name}: found {count} numbers; it must be one for "
                    f"each of the {len(columns)} counts in columns"
                )
        if len(head.distances) != max(2, len(record.heads[0].distances)):
            raise ValueError(
                f"{path}, heads[{number}].distances: found {len(head.distances)} counts; it must "
                "be two or more, as many for all heads"
            )


def _check_times(record: TimesRecord, path: Path) -> None:
    for number, row in enumerate(record.rows):
        if row.length < 1 or row.median_seconds <= 0 or row.speedup <= 0:
            raise ValueError(
                f"{path}, rows[{number}]: found length {row.length}, {row.median_seconds:g} s and "
                f"speedup {row.speedup:g}; all three must be > 0"
            )
    for method, point in record.crossovers.items():
        if point is not None:
            _number(f"{path}, crossovers[{method!r}]", point)


def _built(record: type[_Built], where: str, content: object) -> _Built:
    """A dataclass from a JSON object."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: found {_found(content)}; it must be an object")
    hints = get_type_hints(record)
    values = {}
    separator = "." if where.endswith("]") else ", "
    for field in dataclasses.fields(record):  # type: ignore[arg-type]  # all records are dataclasses
        if field.name in content:
            place = f"{where}{separator}{field.name}"
            values[field.name] = _value(hints[field.name], place, content[field.name])
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: {field.name!r} is missing")
    return record(**values)


def _value(hint: Any, where: str, content: object) -> Any:
    """`content` as the type that `hint` says."""
    if get_origin(hint) in (Union, types.UnionType):
        if content is None:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is list:
        if not isinstance(content, list):
            raise ValueError(f"{where}: found {_found(content)}; it must be a list")
        (kind,) = get_args(hint)
        return [_value(kind, f"{where}[{place}]", item) for place, item in enumerate(content)]
    if get_origin(hint) is dict:
        if not isinstance(content, dict):
            raise ValueError(f"{where}: found {_found(content)}; it must be an object")
        return content
    if dataclasses.is_dataclass(hint):
        return _built(hint, where, content)  # type: ignore[arg-type]
    return _SCALARS[hint](where, content)


def _score(where: str, content: object) -> float:
    if isinstance(content, bool) or not isinstance(content, int | float):
        raise ValueError(f"{where}: found {_found(content)}; it must be a number")
    try:
        return float(content)
    except OverflowError:
        return math.inf


def _number(where: str, content: object) -> float:
    value = _score(where, content)
    if not math.isfinite(value):
        raise ValueError(f"{where}: found {_found(content)}; it must be a finite number")
    return value


def _whole(where: str, content: object) -> int:
    if isinstance(content, bool) or not isinstance(content, int):
        raise ValueError(f"{where}: found {_found(content)}; it must be a whole number")
    return content


def _flag(where: str, content: object) -> bool:
    if not isinstance(content, bool):
        raise ValueError(f"{where}: found {_found(content)}; it must be true or false")
    return content


def _text(where: str, content: object) -> str:
    if not isinstance(content, str):
        raise ValueError(f"{where}: found {_found(content)}; it must be text")
    return content


_SCALARS: dict[Any, Callable[[str, object], object]] = {
    bool: _flag,
    float: _number,
    Score: _score,
    int: _whole,
    str: _text,
}


def _found(content: object) -> str:
    """A short name of a value, for sentences."""
    if isinstance(content, list):
        return f"a list of {len(content)}"
    if isinstance(content, dict):
        return "an object"
    text = "nothing" if content is None else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
