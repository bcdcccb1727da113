"""Ten tasks of InfiniteBench (arXiv 2402.13718) from its files, with prompts in our own words.

Those are the tasks, numbers of new tokens and metrics of MInference's evaluation (arXiv
2407.02490, section 4). Prompts that are too long lose their middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel

from .completion import Completion, Draft, Encoder, compact, require_tokenizer
from .data import JsonLines, data_file
from .scores import (
    LETTERS,
    Score,
    character_f1,
    contains_any,
    first_number,
    has_number,
    has_rouge,
    option,
    rouge_lsum,
    word_f1,
)
from .task import Case, Prompt, Settings, Task

FAMILY = "infinitebench"
SOURCE = "the Hugging Face dataset xinrongzhang2022/InfiniteBench"
FIELDS = ("id", "context", "input", "answer", "options")

References: TypeAlias = Callable[[Any, Sequence[str]], tuple[str, ...]]


def _answers(answer: Any, options: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)


def _right_option(answer: Any, options: Sequence[str]) -> tuple[str, ...]:
    """The letter and the text of the right option; some examples give both themselves."""
    text, *letter = _answers(answer, options)
    if len(letter) == 1 and letter[0] in tuple(LETTERS):
        return letter[0], text
    return LETTERS[list(options).index(text)], text


@dataclass(frozen=True)
class Kind:
    """How the examples of one file are asked and scored."""

    new_tokens: int
    metric: str
    score: Score
    text: str  #: with {context}, {input}, {options}
    answer_prefix: str = ""
    references: References = _answers


_BOOK = "Read the following book, then answer a question about it.\n\n{context}\n\n"
_SHORT = "Question: {input}\nAnswer in a few words.\nAnswer:"
_CHOICE = "Question: {input}\n{options}\nAnswer with the letter of the right option.\nAnswer:"

KINDS = {
    "passkey": Kind(
        15,
        "accuracy",
        has_number,
        "A pass key is hidden in the following text. Memorize it.\n\n{context}\n\n{input}",
    ),
    "number_string": Kind(
        20,
        "accuracy",
        has_number,
        "A sequence of digits is hidden in the following text. Memorize it.\n\n{context}\n\n"
        "{input}",
    ),
    "kv_retrieval": Kind(
        80,
        "accuracy",
        contains_any,
        "Look up a value in the following JSON object.\n\n{context}\n\n{input}",
    ),
    "longbook_sum_eng": Kind(
        1200,
        "rouge",
        rouge_lsum,
        "Summarize the following book.\n\n{context}\n\nSummary:",
    ),
    "longbook_qa_eng": Kind(40, "f1", word_f1, _BOOK + _SHORT),
    "longbook_choice_eng": Kind(40, "accuracy", option, _BOOK + _CHOICE, references=_right_option),
    "longdialogue_qa_eng": Kind(
        40,
        "accuracy",
        contains_any,
        "In the following script the name of one character is replaced by $$MASK$$. Guess who it "
        "is.\n\n{context}\n\nThe name that $$MASK$$ stands for is:",
    ),
    "longbook_qa_chn": Kind(
        40,
        "f1",
        character_f1,
        "请阅读下面这本书，然后简短地回答问题。\n\n{context}\n\n问题：{input}\n答案：",
    ),
    "code_debug": Kind(
        5,
        "accuracy",
        option,
        "One function in the following code has an obvious error.\n\n{context}\n\n"
        "Which function is it?\n{options}\nAnswer with the letter of the right option.\nAnswer:",
        " (",
        references=_right_option,
    ),
    "math_find": Kind(
        3,
        "accuracy",
        first_number,
        "{input}\n\n{context}\n\n{input}\nAnswer with nothing but the number.\nAnswer:",
    ),
}
NAMES = tuple(KINDS)


def check(name: str, settings: Settings) -> None:
    """Raises Failure where the file of a task, or a package, is missing."""
    full_name = f"{FAMILY}:{name}"
    data_file(full_name, settings.data, [f"{name}.jsonl"], SOURCE)
    if KINDS[name].score is rouge_lsum and not has_rouge():
        raise Failure(f"{full_name} is scored with ROUGE: pip install rouge_score")


def task(name: str, loaded: LoadedModel, settings: Settings) -> Task:
    """One of NAMES. Raises Failure where something is missing."""
    check(name, settings)
    full_name = f"{FAMILY}:{name}"
    encoder = Encoder(require_tokenizer(loaded, full_name), settings.chat)
    path = data_file(full_name, settings.data, [f"{name}.jsonl"], SOURCE)
    examples = JsonLines(path, FIELDS)
    if not examples:
        raise Failure(f"{path} is empty")
    return ExampleTask(full_name, encoder, settings, KINDS[name], examples)


@dataclass(frozen=True)
class ExampleTask(Task):
    """The examples of one file, in its order.

    Its calibration prompt is the example after those that are asked; where all are, the first.
    """

    name: str
    encoder: Encoder
    settings: Settings
    kind: Kind
    examples: JsonLines

    def cases(self, length: int) -> list[Case]:
        wanted = self.settings.samples
        count = len(self.examples) if wanted is None else min(wanted, len(self.examples))
        return [Case(sample) for sample in range(count)]

    def prompt(self, length: int, case: Case) -> Prompt:
        return self._completion(length, case.sample)

    def calibration(self, length: int) -> Prompt:
        return self._completion(length, len(self.cases(length)) % len(self.examples))

    def _completion(self, length: int, index: int) -> Completion:
        kind, example = self.kind, self.examples[index]
        budget = length - kind.new_tokens
        if budget < 2:
            raise Failure(
                f"{self.name}: a length of {length} tokens is too short; {kind.new_tokens} are "
                "generated"
            )
        options = example["options"] or []
        listed = "\n".join(
            f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)
        )
        try:
            references = kind.references(example["answer"], options)
        except (ValueError, IndexError) as error:
            raise Failure(
                f"{self.name}, example {index}: the answer {example['answer']!r} is none of the "
                f"options {options!r}"
            ) from error
        fields = {"context": example["context"], "input": example["input"], "options": listed}
        text = kind.text.format(**fields)
        ids = self.encoder.ids(Draft(text, references, kind.answer_prefix))
        return Completion(
            compact(without_middle(ids, budget)),
            references,
            kind.metric,
            kind.score,
            kind.new_tokens,
        )


def without_middle(ids: Sequence[int], most: int) -> list[int]:
    """The first and the last of `ids`, half each, where they are more than `most`."""
    if len(ids) <= most:
        return list(ids)
    last = most // 2
    return [*ids[: most - last], *ids[len(ids) - last :]]
