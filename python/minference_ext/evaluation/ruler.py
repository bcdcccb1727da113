"""The thirteen tasks of RULER (arXiv 2404.06654), generated here in our own words.

Sizes and scores are RULER's: the share of the reference strings that the answer contains, of
questions any of them. Four need the text of essays, two the questions of SQuAD and HotpotQA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from minference_ext.models import LoadedModel

from .completion import Build, Draft, Encoder, TextTask, require_tokenizer
from .data import read_text
from .haystack import NOISE, hide, sentences_of, take
from .needle_tasks import VARIABLE_TOKENS, chains_in
from .ruler_questions import DOCUMENTS, QUESTION_SETS, questions
from .scores import Score, contained_share, contains_any
from .task import Settings, Task
from .words import compound_words, letter_words, numbers, uuids

FAMILY = "ruler"
_COMMON, _COMMON_TIMES, _UNCOMMON_TIMES = 10, 30, 3  # of common words
_EXAMPLE_COMMON_TIMES, _EXAMPLE_UNCOMMON = 6, 10
_FREQUENT, _ALPHA, _NUM_CODED, _CODED_LETTERS = 3, 2.0, 2000, 6  # of frequent words
_MIN_CODED = 100  # words from which on the most frequent ones differ

Make: TypeAlias = Callable[[int, Random], list[str]]


def _digits(count: int, random: Random) -> list[str]:
    return numbers(count, 7, random)


@dataclass(frozen=True)
class Needles:
    """Sentences that give magic values to keys, hidden in a text."""

    haystack: str  #: noise, essay, or needles: more of the same
    keys: Make = compound_words
    values: Make = _digits
    num_keys: int = 1
    num_values: int = 1  #: of each key
    num_asked: int = 1


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", values=uuids),
    "niah_multikey_1": Needles("essay", num_keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", keys=uuids, values=uuids),
    "niah_multivalue": Needles("essay", num_values=4),
    "niah_multiquery": Needles("essay", num_keys=4, num_asked=4),
}
_NEEDLE_TOKENS, _COMMON_TOKENS, _FREQUENT_TOKENS, _QUESTION_TOKENS = 128, 120, 50, 32
WITH_TEXT = tuple(name for name, needles in NEEDLES.items() if needles.haystack == "essay")
NAMES = (*NEEDLES, "vt", "cwe", "fwe", *QUESTION_SETS)


def task(name: str, loaded: LoadedModel, settings: Settings) -> Task:
    """One of NAMES.

    Raises:
        Failure: no tokenizer, or data that is missing.
    """
    full_name = f"{FAMILY}:{name}"
    encoder = Encoder(require_tokenizer(loaded, full_name), settings.chat)

    def of(build: Build, new_tokens: int, score: Score = contained_share, least: int = 1) -> Task:
        return TextTask(
            full_name, encoder, settings, build, "recall", score, new_tokens, least_units=least
        )

    if name in NEEDLES:
        needles = NEEDLES[name]
        is_essay = needles.haystack == "essay"
        text = sentences_of(read_text(full_name, settings.data)) if is_essay else NOISE
        return of(_magic_values(needles, text), _NEEDLE_TOKENS)
    if name == "vt":
        return of(chains_in(NOISE, num_chains=1, num_hops=4), VARIABLE_TOKENS)
    if name == "cwe":
        return of(_common_words, _COMMON_TOKENS)
    if name == "fwe":
        return of(_frequent_words, _FREQUENT_TOKENS, least=_MIN_CODED)
    build = questions(name, full_name, settings)
    return of(build, _QUESTION_TOKENS, contains_any, least=DOCUMENTS)


def _magic_values(needles: Needles, text: Sequence[str]) -> Build:
    def build(random: Random, units: int, depth: float | None) -> Draft:
        keys = needles.keys(needles.num_keys, random)
        values = needles.values(needles.num_keys * needles.num_values, random)
        of_key = {key: values[index :: needles.num_keys] for index, key in enumerate(keys)}
        hidden = [
            (random.random(), _value_sentence(key, value))
            for key, of in of_key.items()
            for value in of
        ]
        asked = keys[: needles.num_asked]
        if needles.haystack == "needles":
            more = zip(needles.keys(units, random), needles.values(units, random), strict=True)
            body = [f" {_value_sentence(key, value)}" for key, value in more if key not in of_key]
        else:
            body = take(text, units)
        listed = ", ".join(asked)
        return Draft(
            "Special magic values are hidden in the following text. Memorize them: there will be a "
            f"question about them.\n\n{hide(body, sorted(hidden))}\n\n"
            f"Question: What are all the special magic values for {listed} in the text?\nAnswer:",
            tuple(value for key in asked for value in of_key[key]),
            f" The special magic values for {listed} in the text are",
        )

    return build


def _value_sentence(key: str, value: str) -> str:
    return f"One of the special magic values for {key} is: {value}."


def _common_words(random: Random, units: int, depth: float | None) -> Draft:
    """units: the number of uncommon words."""
    num_words = 2 * _COMMON + units + _EXAMPLE_UNCOMMON
    words = compound_words(num_words, random)
    common, of_example = words[:_COMMON], words[_COMMON : 2 * _COMMON]
    rest = words[2 * _COMMON :]
    example, prefix = _word_list(
        of_example, _EXAMPLE_COMMON_TIMES, rest[:_EXAMPLE_UNCOMMON], 1, random
    )
    text, _ = _word_list(common, _COMMON_TIMES, rest[_EXAMPLE_UNCOMMON:], _UNCOMMON_TIMES, random)
    return Draft(f"{example}{prefix} {', '.join(of_example)}\n\n{text}", tuple(common), prefix)


def _word_list(
    common: Sequence[str], times: int, rest: Sequence[str], rest_times: int, random: Random
) -> tuple[str, str]:
    """The question, and how its answer begins."""
    listed = [*list(common) * times, *list(rest) * rest_times]
    random.shuffle(listed)
    lines = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    text = (
        f"Some words of the following list come up far more often than the others.\n\n{lines}\n\n"
        f"Question: Which are the {len(common)} most common words in the list?\nAnswer:"
    )
    return text, f" The {len(common)} most common words are:"


def _frequent_words(random: Random, units: int, depth: float | None) -> Draft:
    """units: the number of words in the text; the k-th most frequent has a share of k ** -2.

    The most frequent one is dots, which do not count.
    """
    names = ["...", *letter_words(_NUM_CODED - 1, _CODED_LETTERS, random)]
    total = math.fsum(rank**-_ALPHA for rank in range(1, _NUM_CODED + 1))
    coded = [
        name
        for rank, name in enumerate(names, 1)
        for _ in range(round(units * rank**-_ALPHA / total))
    ]
    random.shuffle(coded)
    return Draft(
        "Count how often each word comes up in the following coded text. The dots ... are no "
        f"word.\n\n{' '.join(coded)}\n\n"
        f"Question: Which {_FREQUENT} words come up most often in the coded text?\nAnswer:",
        tuple(names[1 : 1 + _FREQUENT]),
        f" The {_FREQUENT} words that come up most often are:",
    )
