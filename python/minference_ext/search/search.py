"""The search: one pass of the model per prompt, every layer searched as the prompt reaches it.

For each layer: dense attention, the candidates at equal cost, one attention call per candidate for
all heads, then on to the next layer with the dense output. Only one layer's q, k and v exist at a
time, and nothing of size N x N.

Several prompts: sizes are brought to equal cost on each of them; a candidate's errors, recalls and
shares are averaged, and its size is the rung of `size_ladder` nearest to the mean of its rungs. All
prompts are of one length, so that they have one ladder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from minference_ext import __version__
from minference_ext.benchmark.machine import describe
from minference_ext.methods import Layer, LayerIndex
from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern

from . import upstream
from .choose import Candidate, choose
from .equal_cost import cost_of, equalise, size_ladder
from .measure import (
    Dense,
    Lines,
    Measured,
    count_lines,
    measure,
    rounding_error,
    window_attention,
)
from .progress import HeadSample, Progress
from .prompts import MIN_LENGTH, Prompt
from .refine import refine
from .results import HeadResult, SearchResult
from .settings import SearchSettings

if TYPE_CHECKING:  # it needs transformers
    from transformers import PreTrainedModel

NO_FULL_ATTENTION = "model: every layer has a sliding window shorter than the prompt"

#: Called after each layer with the numbers of prompt and layer, both from 0.
OnLayer = Callable[[int, int], None]


def search_patterns(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: SearchSettings | None = None,
    *,
    name: str | None = None,
    progress: Path | None = None,
    on_layer: OnLayer | None = None,
) -> SearchResult:
    """Finds a pattern for every head of a model.

    Args:
        model: a causal LM of Transformers, without gradients. It is as before afterwards.
        prompts: of one length, at least 64 tokens and for objective "output" more than the budget.
        settings: None: the defaults.
        name: of the model, for the files; None: as its config says.
        progress: a file that holds every finished layer. If it is there, the search goes on from
            it. It stays: delete it when the result is saved.
        on_layer: told of every layer that is done.

    Raises:
        ValueError: prompts or budget as said above, a progress file of another search, a model
            without a layer to search, or whose attention is not finite or not that of Transformers.
        NotImplementedError: attention of a kind that "minference" does not run.
        RuntimeError: as `minference_ext.sparse_attention`.
    """
    from .capture import visit_layers

    settings = SearchSettings() if settings is None else settings
    name = name or model.config.name_or_path or type(model).__name__
    _check_prompts(prompts, settings)
    text_config = model.config.get_text_config()
    num_layers, num_heads = text_config.num_hidden_layers, text_config.num_attention_heads
    fingerprint = {
        "package": __version__,
        "model": name,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "length": prompts[0].length,
        "settings": settings.record(),
        "prompts": [[prompt.name, _digest(prompt)] for prompt in prompts],
    }
    state = Progress.begin_or_resume(
        progress, fingerprint, describe(str(model.device)), len(prompts)
    )
    for sample in range(state.finished, len(prompts)):
        search = _PromptSearch(settings, state, sample, on_layer)
        visit_layers(model, prompts[sample].input_ids, search.visit)
        if not state.samples[sample]:
            raise ValueError(NO_FULL_ATTENTION)
        state.finished = sample + 1
        state.save()
    return SearchResult(
        name,
        state.machine,
        tuple((prompt.name, prompt.length) for prompt in prompts),
        settings,
        tuple(
            tuple(state.results.get(layer) or [_unsearched(settings, "no attention")] * num_heads)
            for layer in range(num_layers)
        ),
    )


class _PromptSearch:
    """Searches every layer that one prompt reaches; with the last prompt it chooses."""

    def __init__(
        self, settings: SearchSettings, state: Progress, sample: int, on_layer: OnLayer | None
    ) -> None:
        self._settings = settings
        self._state = state
        self._sample = sample
        self._on_layer = on_layer

    def visit(self, layer: Layer, window: int | None) -> Tensor:
        """Dense attention of the layer, [1, H, length, head_dim]."""
        searched = self._state.samples[self._sample]
        if window is None:
            dense = Dense.of(layer)
            out = dense.out
            if layer.layer_idx not in searched:
                searched[layer.layer_idx] = self._candidates(layer, dense)
                if self._sample == len(self._state.samples) - 1:
                    self._state.results[layer.layer_idx] = self._results(layer, dense)
                self._state.save()
        else:
            out, share = window_attention(layer, window)
            one = _unsearched(self._settings, "sliding window", share)
            self._state.results[layer.layer_idx] = [one] * layer.num_heads
        if self._on_layer is not None:
            self._on_layer(self._sample, layer.layer_idx)
        return out

    def _candidates(self, layer: Layer, dense: Dense) -> list[HeadSample]:
        """Every candidate of every head, at equal cost."""
        settings = self._settings
        if settings.objective == "upstream":
            samples = [
                HeadSample(tuple(of_head), None) for of_head in upstream.candidates(layer, dense)
            ]
        else:
            per_candidate = equal_candidates(layer, dense, settings)
            samples = [
                HeadSample(tuple(of_head), lines)
                for *of_head, lines in zip(*per_candidate, count_lines(layer), strict=True)
            ]
        for head, sample in enumerate(samples):
            if not all(math.isfinite(candidate.error) for candidate in sample.candidates):
                raise ValueError(
                    f"layer {layer.layer_idx}, head {head}: attention is not finite on this prompt"
                )
        return samples

    def _results(self, layer: Layer, dense: Dense) -> list[HeadResult]:
        """The choice of every head, from what all prompts said, and what it becomes."""
        idx, settings = layer.layer_idx, self._settings
        of_samples = [sample[idx] for sample in self._state.samples]
        chosen = []
        for head in range(layer.num_heads):
            of_head = [sample[head] for sample in of_samples]
            if settings.objective == "upstream":
                chosen.append(_upstream_choice(of_head))
            else:
                chosen.append(_choice(of_head, settings, layer))
        if settings.refine is not None:
            return _refined(layer, dense, chosen, settings, settings.refine)
        if settings.objective == "upstream":
            index = LayerIndex(tuple(one.pattern for one in chosen), dense_fallback=False)
            measured = measure(layer, dense, index)
            return [_with(one, new) for one, new in zip(chosen, measured, strict=True)]
        return chosen


def equal_candidates(layer: Layer, dense: Dense, settings: SearchSettings) -> list[list[Candidate]]:
    """The candidates of objective "output" on one prompt: [candidates][query heads]."""
    heads = layer.num_heads
    cost = cost_of(settings.cost, layer)
    targets = cost([settings.budget] * heads)
    found = []
    for wanted in (settings.budget, *settings.candidates):
        patterns, fits = [wanted] * heads, [True] * heads
        if wanted != settings.budget:
            equal = equalise(
                layer,
                patterns,
                targets,
                cost=cost,
                step=settings.step,
                tolerance=settings.tolerance,
            )
            patterns = [one.pattern for one in equal]
            fits = [one.fits for one in equal]
        measured = measure(layer, dense, LayerIndex(tuple(patterns), dense_fallback=False))
        found.append(
            [
                Candidate(pattern, one.error, one.recall, one.computed_share, is_within)
                for pattern, one, is_within in zip(patterns, measured, fits, strict=True)
            ]
        )
    return found


# ---- One head, from all prompts ------------------------------------------------------------------


def _choice(of_head: list[HeadSample], settings: SearchSettings, layer: Layer) -> HeadResult:
    length = layer.k.shape[2]
    wanted = (settings.budget, *settings.candidates)
    candidates = tuple(
        _mean([sample.candidates[number] for sample in of_head], one, length, settings.step)
        for number, one in enumerate(wanted)
    )
    lines = _mean_lines([sample.lines for sample in of_head if sample.lines is not None])
    winner, reason = choose(candidates, lines, rounding_error(layer))
    return HeadResult(
        winner.pattern,
        winner.error,
        winner.recall,
        winner.computed_share,
        winner.error,
        reason,
        candidates,
        lines,
    )


def _upstream_choice(of_head: list[HeadSample]) -> HeadResult:
    per_candidate = zip(*(sample.candidates for sample in of_head), strict=True)
    candidates = [_mean_numbers(list(same), same[0].pattern) for same in per_candidate]
    written, score, reason = upstream.choose(candidates)
    return HeadResult(written, 0.0, 0.0, 0.0, score, reason, tuple(candidates))


def _mean(of_prompts: list[Candidate], wanted: HeadPattern, length: int, step: int) -> Candidate:
    if len(of_prompts) == 1 or wanted.kind == "a_shape":
        return _mean_numbers(of_prompts, of_prompts[0].pattern)
    ladder = size_ladder(wanted, length, step)
    rung = statistics.fmean(ladder.index(candidate.pattern) for candidate in of_prompts)
    return _mean_numbers(of_prompts, ladder[round(rung)])


def _mean_numbers(of_prompts: list[Candidate], pattern: HeadPattern) -> Candidate:
    return Candidate(
        pattern,
        statistics.fmean(one.error for one in of_prompts),
        statistics.fmean(one.recall for one in of_prompts),
        statistics.fmean(one.computed_share for one in of_prompts),
        all(one.is_within_budget for one in of_prompts),
    )


def _mean_lines(of_prompts: list[Lines]) -> Lines:
    return Lines(
        statistics.fmean(one.a_shape for one in of_prompts),
        statistics.fmean(one.columns for one in of_prompts),
        statistics.fmean(one.diagonals for one in of_prompts),
    )


def _refined(
    layer: Layer,
    dense: Dense,
    chosen: list[HeadResult],
    settings: SearchSettings,
    recall: float,
) -> list[HeadResult]:
    found = refine(
        layer,
        dense,
        [one.pattern for one in chosen],
        [_best_vertical_slash(one) for one in chosen],
        recall,
        settings.refine_step,
    )
    results = []
    for one, new in zip(chosen, found, strict=True):
        result = one
        if new.pattern != one.pattern or settings.objective == "upstream":
            result = _with(one, new.after)
        if new.pattern != one.pattern:
            result = dataclasses.replace(
                result,
                pattern=new.pattern,
                score=one.score if settings.objective == "upstream" else new.after.error,
                reason=f"{one.reason}; enlarged from {pattern_text(one.pattern)} for the recall",
            )
        results.append(dataclasses.replace(result, recall_before=new.before.recall))
    return results


def _best_vertical_slash(result: HeadResult) -> HeadPattern:
    """What takes the place of a head's pattern of another kind when its recall is too low."""
    of_kind = [one for one in result.candidates if one.pattern.kind == "vertical_slash"]
    within = [one for one in of_kind if one.is_within_budget]
    return min(within or of_kind, key=lambda one: one.error).pattern


def _with(result: HeadResult, measured: Measured) -> HeadResult:
    return dataclasses.replace(
        result,
        error=measured.error,
        recall=measured.recall,
        computed_share=measured.computed_share,
    )


# ---- Layers without a choice ---------------------------------------------------------------------


def _unsearched(settings: SearchSettings, reason: str, share: float = 0.0) -> HeadResult:
    score = 1.0 if settings.objective == "upstream" else 0.0
    return HeadResult(HeadPattern.dense(), 0.0, 1.0, share, score, reason)


# ---- What it starts from -------------------------------------------------------------------------


def _check_prompts(prompts: Sequence[Prompt], settings: SearchSettings) -> None:
    lengths = sorted({prompt.length for prompt in prompts})
    if len(lengths) != 1 or lengths[0] < MIN_LENGTH:
        raise ValueError(
            f"prompts: found lengths {lengths}; they must be of one length, at least {MIN_LENGTH}"
        )
    settings.check_length(lengths[0])


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(str(prompt.input_ids.tolist()).encode()).hexdigest()
