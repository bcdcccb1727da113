"""Runs methods on the prompts of tasks: sparse prefill, dense decoding, and what was computed."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from minference_ext.command_line import Failure
from minference_ext.methods import Method, parse
from minference_ext.methods.shapes import Patterns
from minference_ext.models import LoadedModel

from .catalog import TaskName, make_tasks, parse_tasks
from .data import digest
from .progress import Progress
from .results import DATA_FILES, FILES, Results, Row
from .task import Answer, Case, Prompt, Settings, Task

if TYPE_CHECKING:  # needs transformers
    from minference_ext.transformers import LayerPlan

SDPA = "sdpa"
CHUNKED_MLP_TOKENS = 32768


@dataclass(frozen=True, eq=False)
class Contender:
    """A method, or PyTorch's own dense attention."""

    text: str
    method: Method | None  #: None: PyTorch's own

    @property
    def has_memory(self) -> bool:
        return self.method is not None and self.method.has_memory


def parse_contenders(text: str) -> list[Contender]:
    """Methods from a list with commas as `minference_ext.methods.parse_list` takes it; also "sdpa".

    Raises:
        ValueError, FileNotFoundError: as `minference_ext.methods.parse`.
    """
    contenders = []
    for item in re.split(r",(?![^(]*\))", text):
        method = None if item.strip() == SDPA else parse(item)
        contenders.append(Contender(SDPA if method is None else str(method), method))
    return list({contender.text: contender for contender in contenders}.values())


def identity(
    dtype: torch.dtype, settings: Settings, contenders: Sequence[Contender]
) -> dict[str, Any]:
    """What rows depend on beside the model's name and their own fields, as JSON."""
    files = {
        contender.text: hashlib.sha256(Path(contender.method.file).read_bytes()).hexdigest()
        for contender in contenders
        if isinstance(contender.method, Patterns)
    }
    data = settings.data
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "seed": settings.seed,
        "depths": list(settings.depths),
        "chat": settings.chat,
        "data": None if data is None else str(data.resolve()),
        **({} if data is None else {DATA_FILES: digest(data)}),
        FILES: files,
    }


def evaluate(
    loaded: LoadedModel,
    tasks: str | Sequence[TaskName],
    methods: str | Sequence[Contender],
    lengths: Sequence[int],
    *,
    settings: Settings | None = None,
    results: Results | None = None,
    show_progress: bool = False,
) -> list[Row]:
    """Runs every method on every prompt of every task and length.

    The model is left with the attention of the last method, and for prompts over 32768 tokens with
    MLPs in pieces (`minference_ext.transformers.chunk_mlp`).

    Args:
        loaded: as `minference_ext.models.load_model` returns it.
        tasks, methods: as the command line takes them, or parsed.
        lengths: tokens.
        results: rows that are there are not run again; each new one is added, and saved.
        show_progress: on stderr.

    Returns:
        The rows of all that was asked for, by task, length, method and prompt.

    Raises:
        ValueError, FileNotFoundError: a text that cannot be parsed.
        Failure: a task that this model, its data or a length cannot serve, a method that this model
            cannot run; rows up to then are in `results`.
    """
    names = parse_tasks(tasks) if isinstance(tasks, str) else tasks
    contenders = parse_contenders(methods) if isinstance(methods, str) else methods
    settings = settings or Settings()
    if results is None:
        known = identity(loaded.model.dtype, settings, contenders)
        results = Results(loaded.name, known, device=str(loaded.model.device))
    with torch.inference_mode():
        run = _Run(loaded, make_tasks(names, loaded, settings), contenders, lengths, results)
        return run.rows(show_progress)


@dataclass(frozen=True, eq=False)
class _Job:
    """The prompts of one task and length that one method is asked."""

    task: Task
    length: int
    contender: Contender
    cases: Sequence[Case]
    missing: Sequence[Case]  #: without rows

    @property
    def text(self) -> str:
        return f"{self.task.name}, {self.length} tokens, {self.contender.text}"


class _Run:
    def __init__(
        self,
        loaded: LoadedModel,
        tasks: Sequence[Task],
        contenders: Sequence[Contender],
        lengths: Sequence[int],
        results: Results,
    ) -> None:
        self._loaded = loaded
        self._results = results
        _check_heads(loaded, contenders)
        for task in tasks:  # before any of them takes its hours
            self._check(task, min(lengths), contenders)
        self._jobs = [
            self._job(task, length, contender)
            for task in tasks
            for length in sorted(lengths)
            for contender in contenders
        ]
        if max(lengths) > CHUNKED_MLP_TOKENS:
            _chunk_mlp(loaded)

    def _check(self, task: Task, length: int, contenders: Sequence[Contender]) -> None:
        task.prompt(length, task.cases(length)[0])
        if any(contender.has_memory for contender in contenders):
            task.calibration(length)

    def _job(self, task: Task, length: int, contender: Contender) -> _Job:
        cases = task.cases(length)
        missing = [
            case
            for case in cases
            if not self._results.of_case(task.name, contender.text, length, case)
        ]
        return _Job(task, length, contender, cases, missing)

    def rows(self, show_progress: bool) -> list[Row]:
        num_prompts = sum(len(job.missing) for job in self._jobs)
        progress = Progress(num_prompts) if show_progress and num_prompts else None
        prompts: dict[Case, Prompt] = {}
        prompts_of: tuple[Task, int] | None = None
        try:
            for job in self._jobs:
                if prompts_of != (job.task, job.length):
                    prompts, prompts_of = {}, (job.task, job.length)
                self._run(job, prompts, progress)
        finally:
            if progress is not None:
                progress.close()
        return [
            row
            for job in self._jobs
            for case in job.cases
            for row in self._results.of_case(job.task.name, job.contender.text, job.length, case)
        ]

    def _run(self, job: _Job, prompts: dict[Case, Prompt], progress: Progress | None) -> None:
        """prompts: those of this task and length that other methods were asked."""
        if not job.missing:
            return
        with _failures(job):
            _use(self._loaded, job.contender)
            if job.contender.method is not None and job.contender.has_memory:
                job.contender.method.forget()
                what = f"{job.text}, calibration"
                with _shown(progress, self._loaded, what):
                    begin = time.perf_counter()
                    job.task.calibration(job.length).prefill(self._loaded)
                    seconds = time.perf_counter() - begin
                if progress is not None:
                    progress.done(what, f"{seconds:.3g} s", counts=False)
            for case in job.missing:
                if case not in prompts:
                    prompts[case] = job.task.prompt(job.length, case)
                self._ask(job, case, prompts[case], progress)

    def _ask(self, job: _Job, case: Case, prompt: Prompt, progress: Progress | None) -> None:
        # Counting estimates once more, so one prompt must do: the same one of every method.
        is_counted = case == job.cases[0]
        what = f"{job.text}, sample {case.sample}"
        if len(case.depths) == 1 and case.depths[0] is not None:
            what += f", depth {case.depths[0]:.0%}"
        with _shown(progress, self._loaded, what):
            begin = time.perf_counter()
            with _plans(self._loaded, is_counted) as plans:
                answers = prompt.answers(self._loaded)
            seconds = time.perf_counter() - begin
        share = _computed_share(plans)
        self._results.add([_row(job, case, answer, seconds, share) for answer in answers])
        if progress is not None:
            progress.done(what, f"{_means(answers)}, {seconds:.3g} s")


def _row(job: _Job, case: Case, answer: Answer, seconds: float, share: float | None) -> Row:
    return Row(
        task=job.task.name,
        method=job.contender.text,
        length=job.length,
        sample=case.sample,
        depth=answer.depth,
        metric=answer.metric,
        score=answer.score,
        prediction=answer.prediction,
        answer=answer.answer,
        seconds=seconds,
        computed_share=share,
    )


def _means(answers: Sequence[Answer]) -> str:
    """The mean score of each metric, in words."""
    by_metric: dict[str, list[float]] = {}
    for answer in answers:
        by_metric.setdefault(answer.metric, []).append(answer.score)
    return ", ".join(f"{metric} {fmean(of):.3g}" for metric, of in by_metric.items())


@contextmanager
def _failures(job: _Job) -> Iterator[None]:
    """What models and methods raise, as a sentence that says where."""
    try:
        yield
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise Failure(f"{job.text}: {error}") from error


@contextmanager
def _shown(progress: Progress | None, loaded: LoadedModel, what: str) -> Iterator[None]:
    if progress is None:
        yield
        return
    with progress.prompt(loaded.model, what):
        yield


@contextmanager
def _plans(loaded: LoadedModel, is_counted: bool) -> Iterator[list[LayerPlan]]:
    from minference_ext.transformers import record_plans

    if not is_counted:
        yield []
        return
    with record_plans(loaded.model) as plans:
        yield plans


def _computed_share(plans: Sequence[LayerPlan]) -> float | None:
    causal = sum(int(plan.stats.causal_pairs.sum()) for plan in plans)
    if causal == 0:
        return None
    computed = sum(int(plan.stats.computed_pairs.sum()) for plan in plans)
    return min(1.0, computed / causal)  # the last tile of a dense row reaches beyond the diagonal


def _use(loaded: LoadedModel, contender: Contender) -> None:
    from minference_ext.transformers import configure

    if contender.method is None:
        loaded.model.set_attn_implementation(SDPA)
    else:
        configure(loaded.model, contender.method)


def _chunk_mlp(loaded: LoadedModel) -> None:
    from minference_ext.transformers import chunk_mlp

    try:
        chunk_mlp(loaded.model, CHUNKED_MLP_TOKENS)
    except ValueError:  # it has no such MLPs: its prefill takes more memory, and is the same
        return


def _check_heads(loaded: LoadedModel, contenders: Sequence[Contender]) -> None:
    config: Any = loaded.model.config.get_text_config()
    expected = (config.num_hidden_layers, config.num_attention_heads)
    for contender in contenders:
        if isinstance(contender.method, Patterns):
            patterns = contender.method.model_patterns
            if (patterns.num_layers, patterns.num_heads) != expected:
                raise Failure(
                    f"{contender.method.file} has {patterns.num_layers} layers with "
                    f"{patterns.num_heads} heads; {loaded.name} has {expected[0]} with "
                    f"{expected[1]}"
                )
