"""Prompts to calibrate on: key-value retrieval as in InfiniteBench, made on the spot, or files.

The paper calibrates on one prompt of that task with 30K tokens: its answer lies anywhere, so a head
that looks far back shows it. No data set is needed: keys and values are random UUIDs.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minference_ext.models import LoadedModel, first_tokens

if TYPE_CHECKING:  # it needs transformers
    from minference_ext.testing import RetrievalSpec

MIN_LENGTH = 64  # queries that vertical_slash estimates from
_TASK = "Below is a JSON object of keys and their values. Find the value of one key in it.\n\n"
_RETRIEVAL_QUESTIONS = 17  # tokens of BOS and 8 questions
_SURELY_KEPT = 0.95  # of the share of pairs before the cut; pairs differ a little in tokens


@dataclass(frozen=True)
class Prompt:
    name: str
    input_ids: Tensor  #: int64 [1, length]

    @property
    def length(self) -> int:
        return self.input_ids.shape[1]


def key_value_prompts(loaded: LoadedModel, length: int, samples: int, seed: int) -> list[Prompt]:
    """Prompts of exactly `length` tokens that are full of key-value pairs and ask for one.

    The retrieval model has tokens of its own for pairs, between random ones. Prompt n is made from
    seed + n alone.

    Raises:
        ValueError: too short for a pair and the question, or too long for the retrieval model.
    """
    prompts = []
    for number in range(seed, seed + samples):
        if loaded.spec is not None:
            input_ids = _of_retrieval_model(loaded.spec, length, number)
        else:
            input_ids = _of_tokenizer(loaded.tokenizer, length, number)
        prompts.append(Prompt(f"kv_retrieval, seed {number}", input_ids))
    return prompts


def text_prompts(loaded: LoadedModel, length: int, paths: Sequence[Path]) -> list[Prompt]:
    """The first `length` tokens of each file.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not UTF-8 or has fewer tokens, or the model has no tokenizer.
    """
    if loaded.tokenizer is None:
        raise ValueError(f"model {loaded.name} has no tokenizer, so it reads no text")
    prompts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: it must be text in UTF-8: {error}") from error
        ids = first_tokens(loaded.tokenizer, text, length)
        if len(ids) < length:
            raise ValueError(
                f"{path} has {len(ids)} tokens; it must have {length} or more, the length asked for"
            )
        prompts.append(Prompt(str(path), torch.tensor([ids])))
    return prompts


def _of_retrieval_model(spec: RetrievalSpec, length: int, seed: int) -> Tensor:
    """As many pairs as fit; the rest is blank: random filler out of a small vocabulary would repeat
    itself, and the induction head would find every repetition, where UUIDs have none."""
    from minference_ext.testing import key_value_pairs
    from minference_ext.testing.model import SEP_TOKEN

    num_pairs = min(spec.num_keys, spec.num_values, (length - _RETRIEVAL_QUESTIONS) // 3)
    ids = key_value_pairs(length, num_pairs, seed=seed, spec=spec).input_ids
    is_filler = (ids >= spec.filler_tokens.start) & (ids < spec.filler_tokens.stop)
    return ids.masked_fill(is_filler, SEP_TOKEN)


def _of_tokenizer(tokenizer: Any, length: int, seed: int) -> Tensor:
    generator = random.Random(seed)
    pairs = [(_uuid(generator), _uuid(generator))]
    text = _TASK + _json(pairs)
    question = _token_ids(tokenizer, _question(pairs[0][0]), special=False)
    room = length - len(question)  # all questions are of much the same length
    if room < len(_token_ids(tokenizer, text)):
        raise ValueError(
            f"length is {length}; the shortest prompt with a pair and a question has "
            f"{len(question) + len(_token_ids(tokenizer, text))} tokens"
        )
    ids: list[int] = []
    while len(ids) < length:
        pairs += [(_uuid(generator), _uuid(generator)) for _ in range(max(8, len(pairs)))]
        ids = _token_ids(tokenizer, _TASK + _json(pairs))
    num_kept = int(_SURELY_KEPT * room / len(ids) * len(pairs))
    asked, _ = pairs[generator.randrange(max(1, num_kept))]
    question = _token_ids(tokenizer, _question(asked), special=False)
    return torch.tensor([ids[: length - len(question)] + question])


def _json(pairs: Sequence[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{key}": "{value}"' for key, value in pairs)


def _question(key: str) -> str:
    return f'}}\n\nKey: "{key}"\nIts value is: "'


def _uuid(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def _token_ids(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    # Some tokenizers warn of texts beyond the model's length, of which only the beginning is used.
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids
