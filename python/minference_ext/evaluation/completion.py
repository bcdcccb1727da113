"""Text prompts for models with a tokenizer: fitted to a length, answered by generation."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

import torch

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel

from .scores import Score
from .task import Answer, Case, Prompt, Settings, Task


@dataclass(frozen=True)
class Draft:
    """A prompt as text."""

    text: str
    references: tuple[str, ...]
    answer_prefix: str = ""  #: how the answer begins; the model continues it


#: (random numbers, units of text, depth) -> a prompt that grows with the units
Build: TypeAlias = Callable[[Random, int, float | None], Draft]


class Encoder:
    """Token ids of prompts, with the tokenizer's special tokens."""

    def __init__(self, tokenizer: Any, is_chat: bool) -> None:
        """Raises Failure where `is_chat` and the tokenizer has no chat template."""
        if is_chat and getattr(tokenizer, "chat_template", None) is None:
            raise Failure("--chat: the model's tokenizer has no chat template")
        self._tokenizer = tokenizer
        self._is_chat = is_chat

    def ids(self, draft: Draft) -> list[int]:
        if self._is_chat:
            message = [{"role": "user", "content": draft.text}]
            text = self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
            return self._encode(f"{text}{draft.answer_prefix.lstrip()}", special_tokens=False)
        return self._encode(f"{draft.text}{draft.answer_prefix}")

    def _encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        return ids


def require_tokenizer(loaded: LoadedModel, task: str) -> Any:
    """The tokenizer. Raises Failure where there is none."""
    if loaded.tokenizer is None:
        raise Failure(
            f"{task} needs a model with a tokenizer; {loaded.name} has none, and answers niah, "
            "kv_retrieval, variable_tracking and mid_prompt"
        )
    return loaded.tokenizer


def most_units(tokens_of: Callable[[int], int], budget: int, least: int = 1) -> int:
    """The largest number of units found whose prompt has at most `budget` tokens.

    tokens_of: tokens of the prompt with that many units; grows with them, nearly in proportion.

    Raises:
        ValueError: the prompt with `least` units is longer; the text says how long.
    """
    low, low_tokens = least, tokens_of(least)
    if low_tokens > budget:
        raise ValueError(f"{low_tokens}")
    high = max(2 * least, 16)
    while (high_tokens := tokens_of(high)) <= budget:
        per_unit = max(high_tokens - low_tokens, 1) / (high - low)
        low, low_tokens = high, high_tokens
        high = min(8 * high, high + 16 + int(1.1 * (budget - high_tokens) / per_unit))
    is_by_proportion = True
    while high - low > 1:
        middle = (low + high) // 2
        if is_by_proportion:
            per_unit = max(high_tokens - low_tokens, 1) / (high - low)
            guess = low + int((budget - low_tokens) / per_unit)
            middle = min(max(guess, low + 1), high - 1)
        is_by_proportion = not is_by_proportion  # half of the steps halve the range
        tokens = tokens_of(middle)
        if tokens <= budget:
            low, low_tokens = middle, tokens
        else:
            high, high_tokens = middle, tokens
    return low


def compact(ids: Sequence[int]) -> array[int]:
    """Token ids in 4 bytes each; a list has nine times that, and a task has hundreds of prompts."""
    return array("i", ids)


def generate(loaded: LoadedModel, ids: Sequence[int], new_tokens: int) -> str:
    """What the model says after `ids`, decoded greedily: at most `new_tokens` tokens, as text."""
    model: Any = loaded.model  # Transformers' type of generate() rejects its own classes
    input_ids = torch.tensor([ids], device=model.device)
    ends = model.generation_config.eos_token_id
    generated = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,  # some checkpoints forbid it; decoding would then prefill for every token
        repetition_penalty=1.0,  # some checkpoints bring one, which forbids to quote the prompt
        pad_token_id=ends[0] if isinstance(ends, list) else ends,
    )
    text: str = loaded.tokenizer.decode(generated[0, len(ids) :], skip_special_tokens=True)
    return text


@dataclass(frozen=True)
class Completion(Prompt):
    """Token ids that the model continues."""

    ids: Sequence[int]
    references: tuple[str, ...]
    metric: str
    score: Score
    new_tokens: int
    depth: float | None = None

    def prefill(self, loaded: LoadedModel) -> None:
        ids = torch.tensor([self.ids], device=loaded.model.device)
        loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)

    def answers(self, loaded: LoadedModel) -> list[Answer]:
        prediction = generate(loaded, self.ids, self.new_tokens)
        score = self.score(prediction, self.references)
        return [
            Answer(self.metric, score, prediction, " | ".join(self.references), depth=self.depth)
        ]


@dataclass(frozen=True)
class TextTask(Task):
    """A task whose prompts are built from random numbers, as long as fits.

    A prompt and `new_tokens` more are at most the length asked for; one more unit would not fit.
    """

    name: str
    encoder: Encoder
    settings: Settings
    build: Build
    metric: str
    score: Score
    new_tokens: int
    is_by_depth: bool = False  #: a prompt for every depth of the settings
    least_units: int = 1

    def cases(self, length: int) -> list[Case]:
        depths = self.settings.depths if self.is_by_depth else (None,)
        return [
            Case(sample, (depth,))
            for sample in range(self.settings.generated_samples)
            for depth in depths
        ]

    def prompt(self, length: int, case: Case) -> Prompt:
        (depth,) = case.depths
        return self._fitted(length, f"sample {case.sample} depth {depth}", depth)

    def calibration(self, length: int) -> Prompt:
        name = f"calibration of {self.name}"
        depth = Random(f"{name} {self.settings.seed}").random() if self.is_by_depth else None
        return self._fitted(length, name, depth)

    def _fitted(self, length: int, which: str, depth: float | None) -> Completion:
        seed = f"{self.name} seed {self.settings.seed} length {length} {which}"
        ids: dict[int, list[int]] = {}

        def draft(units: int) -> Draft:
            return self.build(Random(seed), units, depth)

        def tokens_of(units: int) -> int:
            ids[units] = self.encoder.ids(draft(units))
            return len(ids[units])

        try:
            units = most_units(tokens_of, length - self.new_tokens, self.least_units)
        except ValueError as error:
            raise Failure(
                f"{self.name}: a length of {length} tokens is too short; the shortest prompt has "
                f"{error}, and {self.new_tokens} are generated"
            ) from error
        return Completion(
            compact(ids[units]),
            draft(units).references,
            self.metric,
            self.score,
            self.new_tokens,
            depth,
        )
