"""Needle in a haystack, key-value retrieval and variable tracking as text, for any model.

Protocols: Needle in a Haystack as in MInference (arXiv 2407.02490, section 4), Retrieve.KV of
InfiniteBench (arXiv 2402.13718), variable tracking of RULER (arXiv 2404.06654). The wording is our
own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from minference_ext.models import LoadedModel

from .completion import Build, Draft, Encoder, TextTask, require_tokenizer
from .data import read_text
from .haystack import NOISE, hide, sentences_of, take
from .scores import contained_share, contains_any, has_number
from .task import Settings, Task
from .words import CITIES, letter_words, numbers, uuids

NIAH_TOKENS, KV_TOKENS, VARIABLE_TOKENS = 32, 80, 30  # generated
_NUM_CHAINS, _NUM_HOPS = 3, 4
_NUMBER_DIGITS = 7
_VALUE_DIGITS = 5
_VARIABLE_LETTERS = 5
_MIN_PAIRS = 2


def needle(loaded: LoadedModel, settings: Settings) -> Task:
    """One magic number at each depth; the haystack is the text at `settings.data`, or noise."""
    haystack = NOISE if settings.data is None else sentences_of(read_text("niah", settings.data))

    def build(random: Random, units: int, depth: float | None) -> Draft:
        city = random.choice(CITIES)
        (number,) = numbers(1, _NUMBER_DIGITS, random)
        hidden = f"The special magic {city} number is {number}."
        text = hide(take(haystack, units), [(depth or 0.0, hidden)])
        return Draft(
            "A special magic number is hidden in the following text. Memorize it: there will be a "
            f"question about it.\n\n{text}\n\n"
            f"Question: What is the special magic {city} number?\nAnswer:",
            (number,),
            f" The special magic {city} number is",
        )

    return TextTask(
        "niah",
        Encoder(require_tokenizer(loaded, "niah"), settings.chat),
        settings,
        build,
        "accuracy",
        has_number,
        NIAH_TOKENS,
        is_by_depth=True,
    )


def key_values(loaded: LoadedModel, settings: Settings) -> Task:
    """A JSON object with pairs of UUIDs, one of which is asked for."""

    def build(random: Random, units: int, depth: float | None) -> Draft:
        asked = random.random()  # drawn first, so that it does not depend on the units
        pairs = dict(zip(uuids(units, random), uuids(units, random), strict=True))
        key = list(pairs)[int(asked * units)]
        return Draft(
            "Look up a value in the following JSON object.\n\nJSON:\n"
            f'{json.dumps(pairs)}\n\nKey: "{key}"\nWhat is the value of this key?',
            (pairs[key],),
            " The value is",
        )

    return TextTask(
        "kv_retrieval",
        Encoder(require_tokenizer(loaded, "kv_retrieval"), settings.chat),
        settings,
        build,
        "accuracy",
        contains_any,
        KV_TOKENS,
        least_units=_MIN_PAIRS,
    )


def variables(loaded: LoadedModel, settings: Settings) -> Task:
    """Three chains of four hops in noise; the variables of the first are asked for."""
    return TextTask(
        "variable_tracking",
        Encoder(require_tokenizer(loaded, "variable_tracking"), settings.chat),
        settings,
        chains_in(NOISE, _NUM_CHAINS, _NUM_HOPS),
        "recall",
        contained_share,
        VARIABLE_TOKENS,
        least_units=1,
    )


def chains_in(haystack: Sequence[str], num_chains: int, num_hops: int) -> Build:
    """Builds prompts with `num_chains` chains of 1 + `num_hops` variables, hidden in `haystack`.

    An example with its answer goes before the question, so that a base model sees the format.
    """

    def problem(random: Random, units: int) -> tuple[str, str, list[str]]:
        names = letter_words(num_chains * (1 + num_hops), _VARIABLE_LETTERS, random, upper=True)
        values = numbers(num_chains, _VALUE_DIGITS, random)
        chains = [names[chain::num_chains] for chain in range(num_chains)]
        needles: list[tuple[float, str]] = []
        for value, chain in zip(values, chains, strict=True):
            depths = sorted(random.random() for _ in chain)
            sources = [value, *(f"VAR {name}" for name in chain)]
            lines = [
                f"VAR {name} = {source}." for name, source in zip(chain, sources, strict=False)
            ]
            needles += zip(depths, lines, strict=True)
        needles.sort(key=lambda placed: placed[0])
        text = (
            "Follow the assignments of variables that are hidden in the following text.\n\n"
            f"{hide(take(haystack, units), needles)}\n\n"
            f"Question: Which variables have the value {values[0]}?\nAnswer:"
        )
        answer = f" The {1 + num_hops} variables with the value {values[0]} are:"
        return text, answer, chains[0]

    def build(random: Random, units: int, depth: float | None) -> Draft:
        text, prefix, names = problem(random, units)
        example, example_prefix, example_names = problem(random, len(NOISE))
        shown = f"{example}{example_prefix} {', '.join(example_names)}\n\n"
        return Draft(f"{shown}{text}", tuple(names), prefix)

    return build
