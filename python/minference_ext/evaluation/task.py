"""What a task is: prompts with known answers, by length.

A `Task` makes a `Prompt` for every `Case`; the prompt runs the model and scores what it says. One
prompt may answer for several depths at once, so answers carry their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minference_ext.models import LoadedModel

DEFAULT_SAMPLES = 5  # of prompts that are generated
DEFAULT_DEPTHS = 10


def even_depths(count: int) -> tuple[float, ...]:
    """That many depths from 0 to 1; one is 0.5."""
    return (0.5,) if count == 1 else tuple(index / (count - 1) for index in range(count))


@dataclass(frozen=True)
class Settings:
    """What prompts are made with, beside the model's tokenizer and a length."""

    samples: int | None = None  #: prompts per length; None: 5 generated ones, or a whole file
    depths: tuple[float, ...] = even_depths(DEFAULT_DEPTHS)  #: of needles; 0: start, 1: end
    seed: int = 0
    data: Path | None = None  #: file or folder; `minference eval --list` says of which task
    chat: bool = False  #: prompts are messages in the tokenizer's chat template

    @property
    def generated_samples(self) -> int:
        return DEFAULT_SAMPLES if self.samples is None else self.samples


@dataclass(frozen=True)
class Case:
    """One prompt of a task at a length, by number, and the depths that it answers for."""

    sample: int
    depths: tuple[float | None, ...] = (None,)


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, and what it is worth."""

    metric: str  #: accuracy, recall, f1 and rouge are 0..1; perplexity, and those of lm_eval, not
    score: float
    prediction: str
    answer: str  #: what would have been right; several are separated by " | "
    depth: float | None = None


class Prompt(ABC):
    """A prompt that is ready for the model of its task."""

    @abstractmethod
    def prefill(self, loaded: LoadedModel) -> None:
        """Reads the prompt and drops the result: methods with memory learn from it."""

    @abstractmethod
    def answers(self, loaded: LoadedModel) -> list[Answer]:
        """Prefill, and greedy decoding where the task has any."""


class Task(ABC):
    """A task for one model. Prompts depend on the settings, the length and the case alone."""

    name: str  #: as results have it: niah, ruler:vt

    @abstractmethod
    def cases(self, length: int) -> Sequence[Case]:
        """All that is asked at that length, in order."""

    @abstractmethod
    def prompt(self, length: int, case: Case) -> Prompt:
        """Raises Failure where a prompt of that many tokens cannot hold the question."""

    @abstractmethod
    def calibration(self, length: int) -> Prompt:
        """A prompt like the others that is none of them. Raises Failure where there is none."""
