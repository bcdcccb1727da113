"""Tasks of lm-evaluation-harness, run in this process on the model as it is configured.

Its command line cannot do that: the attention implementation "minference", and what `configure` set
on a model, belong to the process.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel

from .completion import require_tokenizer
from .task import Answer, Case, Prompt, Settings, Task

FAMILY = "lm_eval"
PACKAGE = "lm_eval"
MISSING = 'tasks of lm_eval need lm-evaluation-harness: pip install "minference_ext[eval]"'


def check(name: str, settings: Settings) -> None:
    """Raises Failure where lm_eval is not installed or does not know the task."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise Failure(MISSING)
    if not name:
        raise Failure(f"{FAMILY} needs the name of a task, as in {FAMILY}:wikitext")
    if settings.data is not None and not settings.data.is_dir():
        raise Failure(
            f"--data is {settings.data}; for {FAMILY} it must be a folder with tasks as YAML files"
        )
    with _quiet():
        known = _task_manager(settings.data).all_tasks
    if name not in known:
        raise Failure(
            f"{FAMILY}:{name}: lm_eval has no task of that name (`lm_eval ls tasks` lists them; "
            "--data names a folder with more)"
        )


def task(name: str, loaded: LoadedModel, settings: Settings) -> Task:
    """Raises Failure as `check`, and where the model has no tokenizer."""
    check(name, settings)
    require_tokenizer(loaded, f"{FAMILY}:{name}")
    return HarnessTask(f"{FAMILY}:{name}", name, loaded.name, settings)


@dataclass(frozen=True)
class HarnessTask(Task):
    """One run of lm_eval is one case, whose sample is the number of examples, 0 for all of them."""

    name: str
    task: str  #: as lm_eval calls it
    model: str
    settings: Settings

    def cases(self, length: int) -> list[Case]:
        return [Case(self.settings.samples or 0)]

    def prompt(self, length: int, case: Case) -> Prompt:
        return HarnessRun(self.task, self.model, length, self.settings)

    def calibration(self, length: int) -> Prompt:
        raise Failure(
            f"{self.name}: methods that learn from an earlier prompt cannot run tasks of lm_eval, "
            "which give no prompt to learn from"
        )


@dataclass(frozen=True)
class HarnessRun(Prompt):
    """All examples of a task, or as many as the settings say; an answer for every metric."""

    task: str
    model: str  #: folder or name, from which RULER of lm_eval takes the tokenizer
    length: int  #: longer prompts are cut by lm_eval
    settings: Settings

    def prefill(self, loaded: LoadedModel) -> None:
        self.answers(loaded)

    def answers(self, loaded: LoadedModel) -> list[Answer]:
        with _quiet():
            manager = _task_manager(self.settings.data)
            # Tasks that generate their prompts, RULER's above all, read these when they load.
            manager.metadata.update(pretrained=self.model, max_seq_lengths=[self.length])
            package: Any = importlib.import_module(PACKAGE)
            models: Any = importlib.import_module(f"{PACKAGE}.models.huggingface")
            language_model = models.HFLM(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                backend="causal",
                max_length=self.length,
                batch_size=1,
            )
            try:
                found = package.simple_evaluate(
                    model=language_model,
                    tasks=[self.task],
                    limit=self.settings.samples,
                    bootstrap_iters=0,
                    log_samples=False,
                    apply_chat_template=self.settings.chat,
                    task_manager=manager,
                    random_seed=self.settings.seed,
                    numpy_random_seed=self.settings.seed,
                    torch_random_seed=self.settings.seed,
                    fewshot_random_seed=self.settings.seed,
                )
            except Exception as error:  # tasks are code and data of others: anything may fail
                kind = type(error).__name__
                raise Failure(f"lm_eval could not run {self.task}: {kind}: {error}") from error
        answers = [
            Answer(metric if name == self.task else f"{name} {metric}", score, "", "")
            for name, metrics in found["results"].items()
            for metric, score in metrics_of(metrics, self.length)
        ]
        if not answers:
            raise Failure(f"{FAMILY}:{self.task}: lm_eval returned no metric")
        return answers


def metrics_of(metrics: dict[str, Any], length: int) -> Iterator[tuple[str, float]]:
    """Names and values of the metrics of one task, as lm_eval keys them: "acc,none".

    Errors of the mean are left out. RULER's metrics are called by the length of the prompts, and
    those of other lengths are -1.
    """
    for key, value in metrics.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if name.isdecimal():
            if int(name) == length:
                yield "recall", float(value)
            continue
        yield name if filtered == "none" else f"{name} ({filtered})", float(value)


@cache
def _task_manager(folder: Path | None) -> Any:
    """Reads the files of all tasks, which takes seconds."""
    tasks: Any = importlib.import_module(f"{PACKAGE}.tasks")
    include = None if folder is None else str(folder)
    # Its tasks hold on to this very object, so that later changes reach them.
    metadata: dict[str, Any] = {"max_seq_lengths": []}
    return tasks.TaskManager(include_path=include, metadata=metadata)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval logs errors alone, prints nothing, and draws its bars on a terminal only."""
    loggers = [logging.getLogger(name) for name in (PACKAGE, "datasets", "evaluate")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(sys.stderr if sys.stderr.isatty() else nowhere),
        ):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
