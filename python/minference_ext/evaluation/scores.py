"""Scores of generated text against references, all from 0 to 1.

Which task uses which is in the tasks; rules follow the papers of the benchmarks, their code is not
used. Comparisons ignore case, except of option letters.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

#: (prediction, references) -> score
Score: TypeAlias = Callable[[str, Sequence[str]], float]

LETTERS = "ABCD"  # of the options of a question
ROUGE_PACKAGE = "rouge_score"

_NUMBER = r"(?:(?<!\w)-)?\d+(?:,\d{3})*(?:\.\d+)?"  # in "key-12" the "-" is no sign
_ARTICLES = r"\b(?:a|an|the)\b"
_LETTER = r"(?<![\w'])(?:A(?! (?!is\b)[a-z])|[B-D])(?![\w'])"  # "A man" names no option


def contains_any(prediction: str, references: Sequence[str]) -> float:
    """1 where one of the references is part of the prediction."""
    return float(any(reference.lower() in prediction.lower() for reference in references))


def contained_share(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that are part of the prediction (RULER)."""
    return sum(contains_any(prediction, [reference]) for reference in references) / len(references)


def has_number(prediction: str, references: Sequence[str]) -> float:
    """1 where one of the references stands in the prediction as a whole number."""
    found = {text.replace(",", "") for text in re.findall(_NUMBER, prediction)}
    return float(any(reference in found for reference in references))


def first_number(prediction: str, references: Sequence[str]) -> float:
    """1 where the first number of the prediction has the value of one of the references."""
    match = re.search(_NUMBER, prediction)
    if match is None:
        return 0.0
    value = float(match.group().replace(",", ""))
    return float(any(value == float(reference) for reference in references))


def option(prediction: str, references: Sequence[str]) -> float:
    """1 where the option chosen is the right one.

    references: the right letter, A to D, then the text of its option. The first such letter that
    stands alone in the prediction counts, as in "(B)" or "B. Anna"; without one, the text.
    """
    letter, text = references
    match = re.search(_LETTER, prediction)
    if match is None:
        return contains_any(prediction, [text])
    return float(match.group() == letter)


def word_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 over words without articles and punctuation, the best of all references (SQuAD).

    Punctuation leaves no gap: "U.S." is one word.
    """
    return max(_f1(_words(prediction), _words(reference)) for reference in references)


def character_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 over characters without punctuation and space, for Chinese."""
    return max(_f1(_characters(prediction), _characters(reference)) for reference in references)


def rouge_lsum(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-Lsum by the package rouge_score, the best of all references; sentences are lines."""
    package: Any = importlib.import_module(f"{ROUGE_PACKAGE}.rouge_scorer")
    scorer = package.RougeScorer(["rougeLsum"])
    return max(
        float(scorer.score(reference, prediction)["rougeLsum"].fmeasure) for reference in references
    )


def has_rouge() -> bool:
    """Whether the package rouge_score is installed; it is not imported."""
    return importlib.util.find_spec(ROUGE_PACKAGE) is not None


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if not _is_punctuation(letter))
    return re.sub(_ARTICLES, " ", plain).split()


def _characters(text: str) -> list[str]:
    return [letter for letter in text.lower() if not (letter.isspace() or _is_punctuation(letter))]


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _f1(predicted: Sequence[str], reference: Sequence[str]) -> float:
    shared = sum((Counter(predicted) & Counter(reference)).values())
    return 2 * shared / (len(predicted) + len(reference)) if shared else 0.0
