"""Prompts to look at: parts of a user's text, or generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minference_ext.models import LoadedModel, first_tokens

NUM_PAIRS = 10
_LAST_QUERIES = 64


@dataclass(frozen=True)
class ObservedPrompt:
    """A prompt, and which of its queries count as the last."""

    name: str
    input_ids: Tensor  #: int64 [1, length]
    num_last: int  #: queries
    last: str  #: what they are


def prompts(
    loaded: LoadedModel, length: int, count: int, text: Path | None = None, seed: int = 0
) -> list[ObservedPrompt]:
    """`count` different prompts of that many tokens each.

    Of a text: its first tokens, then those that follow, each behind the token that begins a text if
    there is one. Without a text: keys and values at random places with questions for all of them,
    of the retrieval model's vocabulary or in words, as a search calibrates with; the first is made
    from `seed`, the next from seed + 1.

    Raises:
        ValueError: a text for a model without tokenizer, a text that is too short or is none, or a
            length too short for what is generated.
        OSError: the text cannot be read.
    """
    if text is not None:
        return _of_text(loaded, text, length, count)
    if loaded.spec is not None:
        return [_pairs(loaded, length, own) for own in range(seed, seed + count)]
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.name} has no tokenizer, and prompts are generated with one")
    from minference_ext.search.prompts import key_value_prompts

    generated = key_value_prompts(loaded, length, count, seed)
    return [_plain(prompt.name, prompt.input_ids) for prompt in generated]


def _plain(name: str, input_ids: Tensor) -> ObservedPrompt:
    num_last = min(_LAST_QUERIES, input_ids.shape[1])
    return ObservedPrompt(name, input_ids, num_last, f"last {num_last} queries")


def _pairs(loaded: LoadedModel, length: int, seed: int) -> ObservedPrompt:
    from minference_ext.testing import key_value_pairs

    prompt = key_value_pairs(length, NUM_PAIRS, range(NUM_PAIRS), seed, spec=loaded.spec)
    num_last = length - prompt.answer_positions[0] + 1
    name = f"{NUM_PAIRS} keys and values, seed {seed}"
    return ObservedPrompt(name, prompt.input_ids, num_last, "for questions")


def _of_text(loaded: LoadedModel, text: Path, length: int, count: int) -> list[ObservedPrompt]:
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.name} has no tokenizer to read {text} with; leave --text out")
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is no text in UTF-8: {error.reason}") from error
    found = first_tokens(loaded.tokenizer, content, count * length)
    # Not every tokenizer that has a token to begin with puts it there.
    begin = found[:1] if found[:1] == [loaded.tokenizer.bos_token_id] else []
    found = found[len(begin) :]
    body = length - len(begin)
    if len(found) < count * body:
        what = "a prompt" if count == 1 else f"{count} prompts"
        raise ValueError(
            f"{text} has {len(found)} tokens; {what} of {length} tokens need {count * body}: take "
            "a longer text or a smaller --length"
        )
    return [
        _plain(
            f"{text.name}, part {part + 1}",
            torch.tensor([begin + found[part * body : (part + 1) * body]]),
        )
        for part in range(count)
    ]
