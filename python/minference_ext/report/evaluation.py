"""What a report says of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from minference_ext.plots import draw_retrieval, draw_scores
from minference_ext.plots.canvas import percent, shortened, tokens
from minference_ext.plots.scores import Scores, score_text

from . import pictures
from .pictures import MetricScores
from .records import EvaluationRecord, Sample
from .section import Picture, Section, Table, machine_facts, mean, model_title

_MOST_ROWS = 12  # of wrong answers


def evaluation_section(record: EvaluationRecord) -> Section:
    methods = pictures.methods_of(record)
    lengths = sorted({row.length for row in record.rows})
    tasks = list(dict.fromkeys(row.task for row in record.rows))
    by_task = pictures.scores_of(record, "task")
    drawn, tables = [], []
    for by, scores in (("task", by_task), ("length", pictures.scores_of(record, "length"))):
        if by == "length" and len(lengths) == 1:
            continue
        title = f"{model_title('Scores of', record.model)} by {by}"
        columns = pictures.flat(scores)
        draw = partial(draw_scores, methods=methods, scores=columns, title=title)
        drawn.append(Picture(f"Scores by {by}", draw))
        tables.append(_scores_table(f"Scores by {by}", methods, columns))
    for task in pictures.tasks_with_depth(record):
        _, found = pictures.retrievals(record, task)
        title = model_title(f"{shortened(task, 60)}:", record.model)
        caption = f"{task}: found by depth and length of the prompt"
        drawn.append(Picture(caption, partial(draw_retrieval, results=found, title=title)))
    return Section(
        title=f"Evaluation: {record.model}",
        conclusion=[sentence for of in by_task for sentence in _sentences(of, methods)],
        facts=[
            ("model", record.model),
            ("methods", ", ".join(methods)),
            ("tasks", ", ".join(tasks)),
            ("lengths", ", ".join(f"{length} tokens" for length in lengths)),
            ("answers", str(len(record.rows))),
            *machine_facts(record.machine),
        ],
        pictures=drawn,
        tables=[*tables, _cost_table(record, methods, lengths), *_wrong_answers_table(record)],
    )


def _sentences(scores: MetricScores, methods: Sequence[str]) -> list[str]:
    """How methods do against dense attention, or else the first; and which of the equal ones
    computes the least."""
    is_high_better = scores.whole.is_high_better
    known = {
        method: score
        for method, score in zip(methods, scores.whole.values, strict=True)
        if not math.isnan(score)
    }
    baseline = "dense" if "dense" in known or not known else next(iter(known))
    over = f"mean over {len(scores.parts)} tasks" if scores.mean else f"of {scores.whole.name}"
    best = known.pop(baseline, math.nan)
    sentence = f"{scores.metric}, {over}: {baseline} {score_text(best)}."
    same = {method for method, score in known.items() if math.isclose(score, best)}
    equal = [
        method
        for method, score in known.items()
        if method in same or (score > best) == is_high_better
    ]
    if equal:
        others = ", ".join(
            method if method in same else f"{method} {score_text(known[method])}"
            for method in equal
        )
        sentence += f" No {'lower' if is_high_better else 'higher'}: {others}."
    rest = sorted(set(known) - set(equal), key=lambda method: known[method], reverse=is_high_better)
    if rest:
        others = ", ".join(
            f"{method} {score_text(known[method])}{_of_baseline(known[method], best)}"
            for method in rest
        )
        sentence += f" {'Lower' if is_high_better else 'Higher'}: {others}."
    shares = {method: _computed_share(scores.rows, method) for method in equal}
    sparse = {method: share for method, share in shares.items() if share < 1}  # NaN is not
    if not sparse:
        return [sentence]
    least = min(sparse, key=lambda method: sparse[method])
    whom = f"that are no {'lower' if is_high_better else 'higher'} than {baseline}"
    return [
        sentence,
        f"Of those {whom}, {least} computes the fewest pairs: {percent(sparse[least])}.",
    ]


def _of_baseline(score: float, baseline: float) -> str:
    share = score / baseline if baseline and math.isfinite(baseline) else math.nan
    return f" ({share:.0%} of it)" if math.isfinite(share) else ""


def _computed_share(rows: Sequence[Sample], method: str) -> float:
    """Of the pairs of dense attention, mean over the answers; NaN: not known."""
    shares = [
        min(1.0, row.computed_share)
        for row in rows
        if row.method == method and row.computed_share is not None
    ]
    return mean(shares)


def _scores_table(title: str, methods: Sequence[str], columns: Sequence[Scores]) -> Table:
    cells = zip(*(of.values for of in columns), strict=True)
    rows = [
        (method, *map(score_text, values)) for method, values in zip(methods, cells, strict=True)
    ]
    return Table(title, ("method", *(of.name for of in columns)), rows, 1)


def _cost_table(record: EvaluationRecord, methods: Sequence[str], lengths: Sequence[int]) -> Table:
    rows = []
    for method in methods:
        of_method = [row for row in record.rows if row.method == method]
        cells = [method, str(len(of_method))]
        for length in lengths:
            of = [row for row in of_method if row.length == length]
            seconds = mean([row.seconds for row in of])
            cells += [score_text(seconds), percent(_computed_share(of, method))]
        rows.append(tuple(cells))
    head = ["method", "answers"]
    for length in lengths:
        head += [f"s, {tokens(length)}", f"computed, {tokens(length)}"]
    note = (
        "s: seconds of an answer; computed: share of the pairs of dense attention that are "
        "multiplied; means over the answers at a length"
    )
    return Table("Cost", tuple(head), rows, 1, note)


def _wrong_answers_table(record: EvaluationRecord) -> list[Table]:
    """Empty if nothing is wrong."""
    wrong = [row for row in record.rows if row.score < 1 and (row.answer or row.prediction)]
    by_method: dict[str, list[Sample]] = {}
    for row in sorted(wrong, key=lambda row: row.score):
        by_method.setdefault(row.method, []).append(row)
    in_turns = sorted(
        ((turn, row) for rows in by_method.values() for turn, row in enumerate(rows)),
        key=lambda item: item[0],
    )
    rows = [
        (
            row.task,
            row.method,
            shortened(row.answer, 60),
            shortened(row.prediction, 120),
            str(row.length),
            "-" if row.depth is None else f"{row.depth:.0%}",
            score_text(row.score),
        )
        for _, row in in_turns[:_MOST_ROWS]
    ]
    head = ("task", "method", "answer", "prediction", "tokens", "depth", "score")
    note = (
        f"{len(rows)} of {len(wrong)} answers with a score below 1, the lowest of each method first"
    )
    return [Table("Wrong answers", head, rows, 4, note)] if rows else []
