"""The pictures of a record: what the drawing functions take, from what a file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from minference_ext.evaluation.summary import needle_maps
from minference_ext.plots.breakdown import Spent
from minference_ext.plots.canvas import tokens
from minference_ext.plots.observations import Coverage
from minference_ext.plots.retrieval import Retrieval
from minference_ext.plots.scores import Scores
from minference_ext.plots.times import Curve

from .records import EvaluationRecord, ObservationRecord, Sample, SearchRecord, TimesRecord
from .section import mean

#: What is timed as a baseline; all else has a crossover.
BASELINES = {"SDPA": "PyTorch SDPA", "dense": "dense (ours)"}
_LOW_IS_BETTER = ("perplexity", "bits_per_byte", "loss")  # parts of metrics' names
_MOST_NAMED = 3  # lengths or tasks that methods have in common; of more only how many


def head_patterns(record: SearchRecord) -> tuple[list[list[str]], list[tuple[str, int]]]:
    """Patterns by [layers][heads], "-" where the record has none, and their counts."""
    layers = [["-"] * record.num_heads for _ in range(record.num_layers)]
    for head in record.heads:
        layers[head.layer][head.head] = head.pattern
    counts = Counter(pattern for layer in layers for pattern in layer)
    return layers, counts.most_common()


def densities(record: SearchRecord) -> list[tuple[int, float, float]]:
    """Layer, computed share and recall of each head."""
    # The last tile of a dense row reaches beyond the diagonal.
    return [(head.layer, min(1.0, head.computed_share), head.recall) for head in record.heads]


class TimedRow(Protocol):
    """A method at one length."""

    @property
    def length(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def median_seconds(self) -> float: ...

    @property
    def speedup(self) -> float: ...


def curves(rows: Sequence[TimedRow], crossovers: Mapping[str, float | None]) -> list[Curve]:
    """Times of each method, SDPA's first: speed-ups are over them."""
    order = list(BASELINES)
    methods = _unique(row.method for row in rows)
    methods.sort(key=lambda method: order.index(method) if method in order else len(order))
    found = []
    for method in methods:
        of = sorted((row for row in rows if row.method == method), key=lambda row: row.length)
        lengths, point = [row.length for row in of], crossovers.get(method)
        found.append(
            Curve(
                BASELINES.get(method, method),
                lengths,
                [row.median_seconds for row in of],
                [row.speedup for row in of],
                is_dense=method in BASELINES,
                crossover=None if point is None else _within(point, lengths),
            )
        )
    return found


def _within(point: float, lengths: Sequence[int]) -> float:
    """A crossover where the curve is: rows of a file need not fit its crossovers."""
    return min(max(float(point), lengths[0]), lengths[-1])


def spent(record: TimesRecord) -> list[Spent]:
    """Every row that has a breakdown.

    Raises:
        ValueError: none has.
    """
    bars = [
        Spent(
            row.length,
            BASELINES.get(row.method, row.method),
            row.breakdown.estimate,
            row.breakdown.plan,
            row.breakdown.attention,
            row.breakdown.rest,
        )
        for row in record.rows
        if row.breakdown is not None
    ]
    if not bars:
        raise ValueError(
            "rows: none has a breakdown; minference bench prefill --breakdown measures it"
        )
    return bars


def tasks_with_depth(record: EvaluationRecord) -> list[str]:
    """Tasks whose scores can be drawn by depth: all of them are 0 .. 1."""
    by_task: dict[str, list[Sample]] = {}
    for row in record.rows:
        if row.depth is not None:
            by_task.setdefault(row.task, []).append(row)
    return [task for task, rows in by_task.items() if all(0 <= row.score <= 1 for row in rows)]


def retrievals(record: EvaluationRecord, task: str | None) -> tuple[str, list[Retrieval]]:
    """The task, and what each method found in it.

    Args:
        task: None: the only one that has depths.

    Raises:
        ValueError: no such task, none that can be drawn by depth, or several to choose from.
    """
    tasks = _unique(row.task for row in record.rows)
    drawable = tasks_with_depth(record)
    if task is not None and task not in tasks:
        raise ValueError(f"--task: found {task!r}; the file has {', '.join(tasks) or 'none'}")
    if task is not None and task not in drawable:
        raise ValueError(
            f"--task: {task!r} has no rows with a depth, or scores beyond 0 .. 1; a map of depths "
            f"can be drawn of {', '.join(drawable) or 'none of its tasks'}"
        )
    if not drawable:
        raise ValueError(
            f"rows: none of {len(record.rows)} has a depth and a score in 0 .. 1, which a map "
            "by depth and length needs"
        )
    if task is None and len(drawable) > 1:
        raise ValueError(f"--task is needed: the file has {', '.join(drawable)}")
    task = drawable[0] if task is None else task
    return task, needle_maps(record.rows, task)


def methods_of(record: EvaluationRecord) -> list[str]:
    return _unique(row.method for row in record.rows)


@dataclass(frozen=True)
class MetricScores:
    """Mean scores of all methods by one metric, at each task or at each length."""

    metric: str
    parts: list[Scores]
    mean: Scores | None  #: of the parts, if they are several
    rows: list[Sample]  #: the answers that count

    @property
    def whole(self) -> Scores:
        return self.mean or self.parts[0]


def scores_of(record: EvaluationRecord, by: str) -> list[MetricScores]:
    """Scores by metric. Methods are compared by what all of them were asked: at a task by the
    lengths that every one has, if there are any, at a length by the tasks.

    by: "task" or "length".
    """
    methods = methods_of(record)
    found = []
    for metric in _unique(row.metric for row in record.rows):
        by_name: dict[str, list[Sample]] = {}
        for row in record.rows:
            if row.metric == metric:
                by_name.setdefault(row.task if by == "task" else str(row.length), []).append(row)
        names = list(by_name) if by == "task" else sorted(by_name, key=int)
        is_high_better = not any(word in metric.lower() for word in _LOW_IS_BETTER)
        parts, counted = [], []
        for name in names:
            rows, remark = _in_common(by_name[name], by)
            by_method: dict[str, list[float]] = {}
            for row in rows:
                by_method.setdefault(row.method, []).append(row.score)
            values = [mean(by_method.get(method, [])) for method in methods]
            shown = name if by == "task" else tokens(int(name))
            parts.append(Scores(f"{shown}{remark}", values, is_high_better))
            counted += rows
        whole = None
        if len(parts) > 1:
            columns = zip(*(part.values for part in parts), strict=True)
            whole = Scores("mean", [mean(values) for values in columns], is_high_better)
        found.append(MetricScores(metric, parts, whole, counted))
    return found


def flat(scores: Sequence[MetricScores]) -> list[Scores]:
    """All parts and means, with their metric in the name where there are several."""
    return [
        replace(part, name=f"{part.name} ({of.metric})")
        if len(scores) > 1 or part is of.mean
        else part
        for of in scores
        for part in (*of.parts, *([of.mean] if of.mean else []))
    ]


def _in_common(rows: list[Sample], by: str) -> tuple[list[Sample], str]:
    """Those of the lengths (by "length": of the tasks) that all methods have here, and which these
    are; all rows if nothing is in common."""

    def part(row: Sample) -> int | str:
        return row.length if by == "task" else row.task

    parts: dict[str, set[int | str]] = {}
    for row in rows:
        parts.setdefault(row.method, set()).add(part(row))
    common, every = set.intersection(*parts.values()), set.union(*parts.values())
    if common == every:
        return rows, ""
    if not common:
        return rows, f", unequal {'lengths' if by == 'task' else 'tasks'}"
    kept = [row for row in rows if part(row) in common]
    if len(common) > _MOST_NAMED:
        return kept, f", {len(common)} {'lengths' if by == 'task' else 'tasks'}"
    if by == "task":
        return (
            kept,
            f" at {', '.join(tokens(length) for length in sorted({r.length for r in kept}))}",
        )
    return kept, f", {', '.join(_unique(row.task for row in kept))}"


def coverage(record: ObservationRecord) -> Coverage:
    """What the picture of observations shows; records have heads and a prompt, or are not read."""
    return Coverage(
        record.prompts[0].length,
        record.columns,
        [head.coverage for head in record.heads],
        [head.reused for head in record.heads],
        [head.distances for head in record.heads],
    )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
