"""Tasks of lm_eval run in this process, on the model as it is configured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from minference_ext import cli
from minference_ext.command_line import Failure
from minference_ext.evaluation import Settings, check_tasks, parse_tasks
from minference_ext.evaluation.harness import PACKAGE, metrics_of

from tests import text_model

Capture = pytest.CaptureFixture[str]
HAS_LM_EVAL = importlib.util.find_spec(PACKAGE) is not None
LENGTH = 1024  # from where on dense attention is not cheaper
WORDS = "grass grows on the hill "  # a token each, and more for their spaces


def test_metrics() -> None:
    found = metrics_of(
        {
            "alias": "x",
            "sample_len": 3,
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "exact_match,strict": 1,
            "bleu_stderr,none": "N/A",
        },
        4096,
    )
    assert list(found) == [("acc", 0.5), ("exact_match (strict)", 1.0)]
    ruler = {"4096,none": -1, "8192,none": 0.75, "8192_stderr,none": "N/A"}
    assert list(metrics_of(ruler, 8192)) == [("recall", 0.75)]


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Failure, match=r'pip install "minference_ext\[eval\]"'):
        check_tasks(parse_tasks("lm_eval:wikitext"), Settings())


def test_data_of_lm_eval_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    if HAS_LM_EVAL:
        with pytest.raises(Failure, match="for lm_eval it must be a folder with tasks as YAML"):
            check_tasks(parse_tasks("lm_eval:x"), Settings(data=tmp_path / "a.txt"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LM_EVAL, reason="tasks of lm_eval need lm_eval")
def test_command(tmp_path: Path, capsys: Capture) -> None:
    """A task of our own from a folder; what is right is "no" of the second and fourth question."""
    model, tasks, path = tmp_path / "model", tmp_path / "tasks", tmp_path / "r.json"
    text_model.save(model)
    tasks.mkdir()
    questions = [{"question": WORDS * 150 + str(i), "label": i % 2} for i in range(4)]
    (tasks / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    task = {
        "task": "yes_or_no",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": str(tasks / "questions.jsonl"),
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tasks / "task.yaml").write_text(json.dumps(task))  # which is YAML

    arguments = (
        "--model", str(model), "--dtype", "float32", "--lengths", str(LENGTH), "--data", str(tasks),
        "--out", str(path),
    )  # fmt: skip
    methods = ("--methods", "sdpa,a_shape(16,64)")
    capsys.readouterr()
    assert cli.main(["eval", "lm_eval:yes_or_no", *arguments, *methods]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 2  # a line per run, and nothing of lm_eval
    assert captured.out.startswith("Mean scores (accuracy, ")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    assert [(row["task"], row["method"], row["metric"], row["sample"]) for row in rows] == [
        ("lm_eval:yes_or_no", "sdpa", "acc", 0),
        ("lm_eval:yes_or_no", "a_shape(16,64)", "acc", 0),
    ]
    assert all(row["score"] in (0.0, 0.25, 0.5, 0.75, 1.0) for row in rows)
    assert rows[0]["computed_share"] is None
    # Prompts were cut to LENGTH tokens: a query attends 80 keys of 512 on average, and computes at
    # most three blocks of 64 more.
    assert 80 / 512 < rows[1]["computed_share"] < (80 + 3 * 64) / 512

    assert cli.main(["eval", "lm_eval:yes_or_no", *arguments, *methods, "--samples", "1"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["sample"] for row in rows] == [0, 0, 1, 1]
    capsys.readouterr()

    for name, method, words in (
        ("lm_eval:no_such_task", "dense", "lm_eval has no task of that name"),
        ("lm_eval:yes_or_no", "static", "methods that learn from an earlier prompt cannot run"),
    ):
        assert cli.main(["eval", name, *arguments, "--methods", method]) == 1
        assert words in capsys.readouterr().err
