"""Perplexity of long texts, as on PG-19, with logits of a few tokens at a time.

A prefill of 128K tokens has logits of many gigabytes, of which each token needs one. The hidden
states come from one prefill, and the readout runs over pieces of them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel, first_tokens

from .completion import compact, require_tokenizer
from .data import read_file, text_files
from .task import Answer, Case, Prompt, Settings, Task

NAME = "pg19"
PIECE_TOKENS = 2048
_CHECKED_TOKENS = 8  # few enough to be attended densely
_TOLERANCE = 0.01  # share of the largest logit; bfloat16 rounds by less


def token_losses(model: Any, input_ids: Tensor, *, piece_tokens: int = PIECE_TOKENS) -> Tensor:
    """Negative log likelihood of each token but the first, in nats.

    Args:
        model: a causal LM of Transformers, with a base model and output embeddings.
        input_ids: int64 [1, length], length >= 2, on the model's device.
        piece_tokens: whose logits are in memory at a time.

    Returns:
        float32 [length - 1].

    Raises:
        ValueError: a model without these parts, or whose logits are not those that they give.
    """
    base, readout = _parts(model)
    _check_readout(model, base, readout, input_ids[:, :_CHECKED_TOKENS])
    hidden = base(input_ids=input_ids, use_cache=False).last_hidden_state[0, :-1]
    targets = input_ids[0, 1:]
    return torch.cat(
        [
            torch.nn.functional.cross_entropy(
                _logits(model, readout, states).float(), of_states, reduction="none"
            )
            for states, of_states in zip(
                hidden.split(piece_tokens), targets.split(piece_tokens), strict=True
            )
        ]
    )


def _parts(model: Any) -> tuple[Any, Any]:
    base, readout = model.base_model, model.get_output_embeddings()
    if base is model or readout is None:
        raise ValueError(
            f"model: {type(model).__name__} has no base model with output embeddings, which the "
            "perplexity of long texts is computed with"
        )
    return base, readout


def _logits(model: Any, readout: Any, states: Tensor) -> Tensor:
    """[tokens, vocabulary], as the families of Transformers scale them."""
    config = model.config.get_text_config()
    logits: Tensor = readout(states)
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def _check_readout(model: Any, base: Any, readout: Any, input_ids: Tensor) -> None:
    expected = model(input_ids=input_ids, use_cache=False).logits[0].float()
    states = base(input_ids=input_ids, use_cache=False).last_hidden_state[0]
    found = _logits(model, readout, states).float()
    if (found - expected).abs().max() > _TOLERANCE * expected.abs().max():
        raise ValueError(
            f"model: {type(model).__name__} changes the logits of its output embeddings in a way "
            "that is not known here, so the perplexity of long texts cannot be computed"
        )


@dataclass(frozen=True)
class Passage(Prompt):
    """The start of a text."""

    ids: Sequence[int]

    def prefill(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        model(input_ids=self._input_ids(loaded), use_cache=False, logits_to_keep=1)

    def answers(self, loaded: LoadedModel) -> list[Answer]:
        loss = float(token_losses(loaded.model, self._input_ids(loaded)).double().mean())
        if not math.isfinite(loss):
            raise Failure(f"{NAME}: the mean loss is {loss}; the model's logits are not finite")
        return [Answer("perplexity", math.exp(loss), "", "")]

    def _input_ids(self, loaded: LoadedModel) -> Tensor:
        return torch.tensor([self.ids], device=loaded.model.device)


@dataclass(frozen=True)
class TextFiles(Task):
    """The first tokens of every text that is long enough, in the order of the files' names.

    Its calibration prompt is the text after those that are measured; where all are, the first.
    """

    tokenizer: Any
    settings: Settings
    files: Sequence[Path]
    #: By length, once they are read.
    _texts: dict[int, list[array[int]]] = field(default_factory=dict)

    name = NAME

    def cases(self, length: int) -> list[Case]:
        count, wanted = len(self._long_enough(length)), self.settings.samples
        return [Case(sample) for sample in range(count if wanted is None else min(wanted, count))]

    def prompt(self, length: int, case: Case) -> Prompt:
        return Passage(self._long_enough(length)[case.sample])

    def calibration(self, length: int) -> Prompt:
        texts = self._long_enough(length)
        return Passage(texts[len(self.cases(length)) % len(texts)])

    def _long_enough(self, length: int) -> list[array[int]]:
        """All texts, or those that are asked for and one more, each of `length` tokens."""
        if length in self._texts:
            return self._texts[length]
        if length < 2:
            raise Failure(f"{NAME}: a length of {length} token has no loss; it must be at least 2")
        texts, longest = [], 0
        for path in self.files:
            ids = first_tokens(self.tokenizer, read_file(path), length)
            longest = max(longest, len(ids))
            if len(ids) == length:
                texts.append(compact(ids))
            if self.settings.samples is not None and len(texts) > self.settings.samples:
                break
        if not texts:
            raise Failure(
                f"{NAME}: no text of --data has {length} tokens; the longest has {longest}"
            )
        self._texts[length] = texts
        return texts


def check(settings: Settings) -> None:
    """Raises Failure where the texts are missing."""
    if settings.data is None:
        raise Failure(
            f"{NAME} needs texts: give --data a .txt file or a folder of them, such as the test "
            "set of the Hugging Face dataset deepmind/pg19"
        )
    text_files(NAME, settings.data)


def task(loaded: LoadedModel, settings: Settings) -> Task:
    check(settings)
    tokenizer = require_tokenizer(loaded, NAME)
    return TextFiles(tokenizer, settings, text_files(NAME, settings.data))
