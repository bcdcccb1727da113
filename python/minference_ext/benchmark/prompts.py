"""Prompts of any length, for the time of a prefill."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minference_ext.models import LoadedModel

# The protocol of the published figures repeats one prompt until it is long enough; this is ours.
TEXT = """A harbour town keeps its records in a long low building behind the fish market. Every
morning the clerk unlocks the door at seven, lights the stove and copies the night's arrivals into
the great ledger: the name of each ship, where she came from, how deep she lay in the water, and
what the master said of the weather. In the year of the late frost forty-one ships came in before
the end of March, eleven of them with salt, nine with timber, and one, the Marigold, with nothing
but letters. Question: if the salt ships carried 120 sacks each and a cart takes 16, how many carts
did the harbour need? Let us count step by step. Eleven ships with 120 sacks each bring 1,320
sacks. A cart takes 16 of them, so 82 carts are full and 8 sacks are left for one more. The answer
is 83. """


def prompt(loaded: LoadedModel, length: int, text: str = TEXT) -> Tensor:
    """Token ids, int64 [1, length], on the CPU; the same on every call.

    With a tokenizer: `text`, repeated or cut, behind the token that begins a text if there is one.
    For the retrieval model: pairs of keys and values, one in 64 tokens up to 256 of them, and
    questions for 8. Else random ids.

    Raises:
        ValueError: a text without tokens.
    """
    if loaded.spec is not None:
        from minference_ext.testing import key_value_pairs

        num_pairs = max(1, min(256, length // 64))
        return key_value_pairs(length, num_pairs, spec=loaded.spec).input_ids
    if loaded.tokenizer is not None:
        return _repeated(loaded.tokenizer, length, text)
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, length), generator=generator)


def _repeated(tokenizer: Any, length: int, text: str) -> Tensor:
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not body:
        raise ValueError("text has no tokens")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    repeats = -(-length // len(body))
    return torch.tensor([(begin + body * repeats)[:length]])
