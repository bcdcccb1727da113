"""Tasks for the retrieval model: token ids as prompts, answers from the logits of a prefill."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel

from .task import Answer, Case, Prompt, Settings, Task

if TYPE_CHECKING:  # needs transformers
    from minference_ext.testing import RetrievalPrompt

    #: (length, depths, seed) -> prompt; depths are empty for tasks without
    Build: TypeAlias = Callable[[int, Sequence[float], int], RetrievalPrompt]

METRIC = "accuracy"
MAX_DEPTHS = 32  # of one prompt: its questions fill the 64 rows of an estimate
ASKED_AT_MULTIPLE = 4096  # default estimate_every of vertical_slash_per_chunk
_ROWS = 64
_NUM_CHAINS = 8
_CALIBRATION_SEED = 1_000_003  # added to the seed, far from those of any sample


@dataclass(frozen=True)
class Questions(Prompt):
    """A prompt with several questions: an answer for each depth, or one for all of them."""

    prompt: RetrievalPrompt
    depths: tuple[float, ...]  #: of the questions; none: one answer, the share that is right

    def prefill(self, loaded: LoadedModel) -> None:
        self._predicted(loaded)

    def answers(self, loaded: LoadedModel) -> list[Answer]:
        predicted, right = self._predicted(loaded), self.prompt.answers
        if not self.depths:
            share = sum(map(int.__eq__, predicted, right)) / len(right)
            return [Answer(METRIC, share, _text(predicted), _text(right))]
        return [
            Answer(METRIC, float(token == answer), str(token), str(answer), depth)
            for token, answer, depth in zip(predicted, right, self.depths, strict=True)
        ]

    def _predicted(self, loaded: LoadedModel) -> list[int]:
        from minference_ext.testing import answer_logits

        model: Any = loaded.model
        tokens: list[int] = answer_logits(model, self.prompt).argmax(dim=-1).tolist()
        return tokens


def _text(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


@dataclass(frozen=True)
class RetrievalTask(Task):
    """Prompts by a function of minference_ext.testing."""

    name: str
    settings: Settings
    build: Build
    has_depths: bool

    def cases(self, length: int) -> list[Case]:
        samples = range(self.settings.generated_samples)
        if not self.has_depths:
            return [Case(sample) for sample in samples]
        depths = self.settings.depths
        groups = [depths[begin : begin + MAX_DEPTHS] for begin in range(0, len(depths), MAX_DEPTHS)]
        return [Case(sample, group) for sample in samples for group in groups]

    def prompt(self, length: int, case: Case) -> Prompt:
        depths = tuple(depth for depth in case.depths if depth is not None)
        return self._questions(length, depths, self.settings.seed + case.sample)

    def calibration(self, length: int) -> Prompt:
        depths = self.settings.depths[: MAX_DEPTHS + 1] if self.has_depths else ()
        # In other places, so that columns learned here do not hold the needles by themselves.
        between = tuple((left + right) / 2 for left, right in itertools.pairwise(depths))
        if self.has_depths and not between:
            between = (0.25 if depths[0] >= 0.5 else 0.75,)
        return self._questions(length, between, self.settings.seed + _CALIBRATION_SEED)

    def _questions(self, length: int, depths: tuple[float, ...], seed: int) -> Questions:
        try:
            return Questions(self.build(length, depths, seed), depths)
        except ValueError as error:
            raise Failure(f"{self.name} with {length} tokens: {error}") from error


def needles(loaded: LoadedModel, settings: Settings) -> Task:
    """One needle at every depth, all asked for at the end of the prompt."""
    from minference_ext.testing import needles_at_depths

    def build(length: int, depths: Sequence[float], seed: int) -> RetrievalPrompt:
        return needles_at_depths(length, depths, seed, spec=loaded.spec)

    return RetrievalTask("niah", settings, build, has_depths=True)


def questions_before_the_end(loaded: LoadedModel, settings: Settings) -> Task:
    """Needles that are asked for in the middle of the prompt; see `asked_at`."""
    from minference_ext.testing import questions_in_the_middle

    if loaded.spec is None:
        raise Failure(
            f"mid_prompt reads its answers inside the prompt: it needs --model retrieval; found "
            f"{loaded.name}"
        )

    def build(length: int, depths: Sequence[float], seed: int) -> RetrievalPrompt:
        return questions_in_the_middle(length, depths, asked_at(length), seed, spec=loaded.spec)

    return RetrievalTask("mid_prompt", settings, build, has_depths=True)


def asked_at(length: int) -> float:
    """Where the questions of mid_prompt end, as a share of the prompt: about its half.

    At a multiple of 4096 tokens, where a chunk of vertical_slash_per_chunk ends by default; of
    prompts below 8192 tokens at a multiple of 64.
    """
    half = length // 2
    multiple = ASKED_AT_MULTIPLE if half >= ASKED_AT_MULTIPLE else _ROWS
    return half // multiple * multiple / length


def key_values(loaded: LoadedModel, settings: Settings) -> Task:
    """A prompt three quarters full of pairs (as many as there are keys), 8 of them asked for."""
    from minference_ext.testing import RetrievalSpec, key_value_pairs

    spec = loaded.spec or RetrievalSpec()

    def build(length: int, depths: Sequence[float], seed: int) -> RetrievalPrompt:
        num_pairs = min(spec.num_keys, spec.num_values, max(1, length // 4 - 8))
        return key_value_pairs(length, num_pairs, seed=seed, spec=spec)

    return RetrievalTask("kv_retrieval", settings, build, has_depths=False)


def variables(loaded: LoadedModel, settings: Settings) -> Task:
    """8 interleaved chains of as many assignments as the model can follow."""
    from minference_ext.testing import RetrievalSpec, variable_tracking

    spec = loaded.spec or RetrievalSpec()

    def build(length: int, depths: Sequence[float], seed: int) -> RetrievalPrompt:
        return variable_tracking(length, spec.hops, seed, num_chains=_NUM_CHAINS, spec=spec)

    return RetrievalTask("variable_tracking", settings, build, has_depths=False)
