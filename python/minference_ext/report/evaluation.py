"""What a report says of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from minference_ext.plots import draw_retrieval, draw_scores
from minference_ext.plots.canvas import shortened
from minference_ext.plots.scores import ScoreRow, score_text

from . import pictures
from .records import EvaluationRecord, Sample
from .section import Section, Table, machine_facts, mean, model_title, percent, picture

_MOST_ROWS = 12  # of wrong answers


def evaluation_section(record: EvaluationRecord) -> Section:
    methods = pictures.methods_of(record)
    lengths = sorted({row.length for row in record.rows})
    tasks = list(dict.fromkeys(row.task for row in record.rows))
    by_task = pictures.score_rows(record, "task")
    drawn = [
        picture(
            "Scores by task",
            partial(
                draw_scores,
                methods=methods,
                rows=by_task,
                title=model_title("Scores of", record.model),
            ),
        )
    ]
    tables = [_scores_table("Scores by task", "task", methods, by_task)]
    if len(lengths) > 1:
        by_length = pictures.score_rows(record, "length")
        drawn.append(
            picture(
                "Scores by length of the prompt",
                partial(
                    draw_scores,
                    methods=methods,
                    rows=by_length,
                    title=f"{model_title('Scores of', record.model)} by length",
                ),
            )
        )
        tables.append(_scores_table("Scores by length", "tokens", methods, by_length))
    for task in pictures.tasks_with_depth(record):
        _, found = pictures.retrievals(record, task)
        title = model_title(f"{shortened(task, 60)}:", record.model)
        drawn.append(
            picture(
                f"{task}: found by depth and length of the prompt",
                partial(draw_retrieval, results=found, title=title),
            )
        )
    return Section(
        title=f"Evaluation: {record.model}",
        conclusion=_evaluation_sentences(record, methods),
        facts=[
            ("model", record.model),
            ("methods", ", ".join(methods)),
            ("tasks", ", ".join(tasks)),
            ("lengths", ", ".join(f"{length} tokens" for length in lengths)),
            ("answers", str(len(record.rows))),
            *machine_facts(record.machine),
        ],
        pictures=drawn,
        tables=[*tables, _cost_table(record, methods), *_wrong_answers_table(record)],
    )


def _evaluation_sentences(record: EvaluationRecord, methods: Sequence[str]) -> list[str]:
    """One per metric: its mean over the tasks, of each method."""
    baseline = "dense" if "dense" in methods else methods[0]
    sentences = []
    for metric in dict.fromkeys(row.metric for row in record.rows):
        rows = [row for row in record.rows if row.metric == metric]
        tasks = list(dict.fromkeys(row.task for row in rows))
        means = {
            method: mean([_task_mean(rows, task, method) for task in tasks]) for method in methods
        }
        over = f"mean over {len(tasks)} tasks" if len(tasks) > 1 else f"of {tasks[0]}"
        others = [
            f"{method} {score_text(score)}{_of_baseline(score, means[baseline])}"
            for method, score in means.items()
            if method != baseline and not math.isnan(score)
        ]
        parts = "; ".join([f"{baseline} {score_text(means[baseline])}", *others])
        sentences.append(f"{metric}, {over}: {parts}.")
    return sentences


def _task_mean(rows: Sequence[Sample], task: str, method: str) -> float:
    return mean([row.score for row in rows if (row.task, row.method) == (task, method)])


def _of_baseline(score: float, baseline: float) -> str:
    share = score / baseline if baseline and math.isfinite(baseline) else math.nan
    return f" ({share:.0%} of it)" if math.isfinite(share) else ""


def _scores_table(title: str, name: str, methods: Sequence[str], rows: Sequence[ScoreRow]) -> Table:
    cells = [(row.name, *map(score_text, row.values)) for row in rows]
    return Table(title, (name, *methods), cells, 1)


def _cost_table(record: EvaluationRecord, methods: Sequence[str]) -> Table:
    rows = []
    for method in methods:
        of = [row for row in record.rows if row.method == method]
        shares = [row.computed_share for row in of if row.computed_share is not None]
        seconds = mean([row.seconds for row in of])
        share = percent(mean([min(1.0, share) for share in shares]))
        rows.append((method, str(len(of)), f"{seconds:.3g}", share))
    head = ("method", "answers", "seconds, mean", "pairs computed, mean")
    return Table("Cost", head, rows, 1)


def _wrong_answers_table(record: EvaluationRecord) -> list[Table]:
    """Empty if nothing is wrong."""
    wrong = [row for row in record.rows if row.score < 1 and (row.answer or row.prediction)]
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
        for row in sorted(wrong, key=lambda row: row.score)[:_MOST_ROWS]
    ]
    head = ("task", "method", "answer", "prediction", "tokens", "depth", "score")
    note = f"{len(rows)} of {len(wrong)} answers with a score below 1, the lowest first"
    return [Table("Wrong answers", head, rows, 4, note)] if rows else []
