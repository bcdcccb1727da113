"""Prompts to look at: parts of a user's text, or generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minference_ext.models import LoadedModel

NUM_NEEDLES = 10
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
    there is one. Without a text: needles for the retrieval model, else pairs of keys and values and
    a question, as a search calibrates with; the first is made from `seed`, the next from seed + 1.

    Raises:
        ValueError: a text for a model without tokenizer, a text that is too short or is none, or a
            length too short for what is generated.
        OSError: the text cannot be read.
    """
    if text is not None:
        return _of_text(loaded, text, length, count)
    if loaded.spec is not None:
        return [_needles(loaded, length, own) for own in range(seed, seed + count)]
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.name} has no tokenizer, and prompts are generated with one")
    from minference_ext.search.prompts import key_value_prompts

    generated = key_value_prompts(loaded, length, count, seed)
    return [_plain(prompt.name, prompt.input_ids) for prompt in generated]


def _plain(name: str, input_ids: Tensor) -> ObservedPrompt:
    num_last = min(_LAST_QUERIES, input_ids.shape[1])
    return ObservedPrompt(name, input_ids, num_last, f"last {num_last} queries")


def _needles(loaded: LoadedModel, length: int, seed: int) -> ObservedPrompt:
    from minference_ext.testing import needles_at_depths

    depths = [index / (NUM_NEEDLES - 1) for index in range(NUM_NEEDLES)]
    prompt = needles_at_depths(length, depths, seed, spec=loaded.spec)
    num_last = length - prompt.answer_positions[0] + 1
    return ObservedPrompt(
        f"{NUM_NEEDLES} needles, seed {seed}", prompt.input_ids, num_last, "for questions"
    )


def _of_text(loaded: LoadedModel, text: Path, length: int, count: int) -> list[ObservedPrompt]:
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.name} has no tokenizer to read {text} with; leave --text out")
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is no text in UTF-8: {error.reason}") from error
    # Some tokenizers warn of texts beyond the model's length, of which only the beginning is used.
    encoded = loaded.tokenizer(content, add_special_tokens=False, verbose=False)
    found: list[int] = encoded["input_ids"]
    first = loaded.tokenizer.bos_token_id
    # Not every tokenizer that has such a token puts it there.
    begin = [first] if first in loaded.tokenizer("")["input_ids"] else []
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
