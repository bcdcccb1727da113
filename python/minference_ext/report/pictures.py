"""The pictures of a record: what the drawing functions take, from what a file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from minference_ext.plots.breakdown import Spent
from minference_ext.plots.observations import Coverage
from minference_ext.plots.retrieval import Retrieval
from minference_ext.plots.scores import ScoreRow
from minference_ext.plots.times import Curve

from .records import EvaluationRecord, ObservationRecord, Sample, SearchRecord, TimesRecord
from .section import mean

#: What is timed as a baseline; all else has a crossover.
BASELINES = {"SDPA": "PyTorch SDPA", "dense": "dense (ours)"}
_LOW_IS_BETTER = ("perplexity", "bits_per_byte", "loss")  # parts of metrics' names


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


def curves(record: TimesRecord) -> list[Curve]:
    """Times of each method, SDPA's first: speed-ups are over them."""
    order = list(BASELINES)
    methods = _unique(row.method for row in record.rows)
    methods.sort(key=lambda method: order.index(method) if method in order else len(order))
    found = []
    for method in methods:
        rows = sorted((row for row in record.rows if row.method == method), key=lambda r: r.length)
        point = record.crossovers.get(method)
        found.append(
            Curve(
                BASELINES.get(method, method),
                [row.length for row in rows],
                [row.median_seconds for row in rows],
                [row.speedup for row in rows],
                is_dense=method in BASELINES,
                crossover=None if point is None else _within(point, [row.length for row in rows]),
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
    rows = [row for row in record.rows if row.task == task and row.depth is not None]
    lengths = sorted({row.length for row in rows})
    depths = sorted({_rounded(row.depth) for row in rows})
    cells: dict[tuple[str, int, float], list[float]] = {}
    for row in rows:
        cells.setdefault((row.method, row.length, _rounded(row.depth)), []).append(row.score)
    return task, [
        Retrieval(
            method,
            "",
            lengths,
            depths,
            [
                [mean(cells.get((method, length, depth), [])) for depth in depths]
                for length in lengths
            ],
        )
        for method in _unique(row.method for row in rows)
    ]


def _rounded(depth: float | None) -> float:
    """Depths that differ by rounding are one."""
    return round(depth or 0.0, 4)


def methods_of(record: EvaluationRecord) -> list[str]:
    return _unique(row.method for row in record.rows)


def score_rows(record: EvaluationRecord, by: str = "task") -> list[ScoreRow]:
    """Mean scores of all methods at each task, or at each length, by metric.

    Metrics with several rows end with their mean.

    by: "task" or "length".
    """
    methods = methods_of(record)
    metrics = _unique(row.metric for row in record.rows)
    table = []
    for metric in metrics:
        of_metric = [row for row in record.rows if row.metric == metric]
        names = _unique(_key(row, by) for row in of_metric)
        if by == "length":
            names.sort(key=int)
        rows = [
            ScoreRow(
                f"{name} ({metric})" if len(metrics) > 1 else name,
                [
                    mean([r.score for r in of_metric if r.method == method and _key(r, by) == name])
                    for method in methods
                ],
                not any(name in metric.lower() for name in _LOW_IS_BETTER),
            )
            for name in names
        ]
        table += rows
        if len(rows) > 1:
            means = [
                mean(list(values)) for values in zip(*(row.values for row in rows), strict=True)
            ]
            table.append(ScoreRow(f"mean ({metric})", means, rows[0].is_high_better))
    return table


def _key(row: Sample, by: str) -> str:
    return row.task if by == "task" else str(row.length)


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
