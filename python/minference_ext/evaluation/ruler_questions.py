"""qa_1 and qa_2 of RULER: questions of SQuAD and HotpotQA among documents that do not help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from minference_ext.command_line import Failure

from .completion import Build, Draft
from .data import data_file, read_json
from .task import Settings

#: From a task to the file of its questions, by its names, and where that comes from.
QUESTION_SETS = {
    "qa_1": (
        ("dev-v2.0.json", "squad.json"),
        "https://rajpurkar.github.io/SQuAD-explorer (SQuAD 2.0)",
    ),
    "qa_2": (
        ("hotpot_dev_distractor_v1.json", "hotpotqa.json"),
        "https://hotpotqa.github.io (distractor setting)",
    ),
}
DOCUMENTS = 1  # at least, beside those that answer the question


@dataclass(frozen=True)
class Question:
    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]  #: that it takes to answer


def question_file(name: str, task: str, settings: Settings) -> Path:
    """Raises Failure where it is missing."""
    names, source = QUESTION_SETS[name]
    return data_file(task, settings.data, names, source)


def questions(name: str, task: str, settings: Settings) -> Build:
    """Builds prompts with a random question each; a unit is a document.

    Raises:
        Failure: the file is missing, or is not what it should be.
    """
    path = question_file(name, task, settings)
    try:
        found = (_squad if name == "qa_1" else _hotpot)(read_json(path))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        _, source = QUESTION_SETS[name]
        raise Failure(f"{path} is not laid out as {source}: {error!r}") from error
    documents = tuple(dict.fromkeys(text for question in found for text in question.documents))
    if not found or len(documents) < 2:
        raise Failure(f"{path} has {len(found)} questions about {len(documents)} documents")

    def build(random: Random, units: int, depth: float | None) -> Draft:
        question = random.choice(found)
        others = [text for text in documents if text not in question.documents]
        random.shuffle(others)
        # A set that is smaller than the prompt is long repeats its documents.
        chosen = [others[index % len(others)] for index in range(units)]
        for text in question.documents:
            chosen.insert(random.randrange(len(chosen) + 1), text)
        listed = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(chosen, 1))
        return Draft(
            "Answer the question from the following documents, with nothing but the answer.\n\n"
            f"{listed}\n\nQuestion: {question.text}\nAnswer:",
            question.answers,
        )

    return build


def _squad(content: Any) -> list[Question]:
    return [
        Question(entry["question"], _distinct(entry["answers"]), (paragraph["context"],))
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
        if entry["answers"]
    ]


def _distinct(answers: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer["text"] for answer in answers))


def _hotpot(content: Any) -> list[Question]:
    return [
        Question(
            entry["question"],
            (entry["answer"],),
            tuple(f"{title}\n{''.join(lines)}" for title, lines in entry["context"]),
        )
        for entry in content
    ]
