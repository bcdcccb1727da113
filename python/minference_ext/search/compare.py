"""Pattern files against each other, on prompts that none of them was calibrated on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minference_ext.methods import Layer, LayerIndex
from minference_ext.model_patterns import ModelPatterns
from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern

from .equal_cost import equalise, tile_cost
from .measure import Dense, Measured, measure, window_attention
from .prompts import Prompt
from .search import NO_FULL_ATTENTION, OnLayer

if TYPE_CHECKING:  # it needs transformers
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeadComparison:
    """One head with the pattern of one file; numbers are means over the prompts (measure.py)."""

    layer: int
    head: int
    pattern: HeadPattern  #: as it ran on the last prompt
    error: float
    recall: float
    computed_share: float

    def record(self) -> dict[str, Any]:
        return {**vars(self), "pattern": pattern_text(self.pattern)}


@dataclass(frozen=True)
class Comparison:
    """What the patterns of one file keep."""

    name: str
    heads: tuple[HeadComparison, ...]  #: of layers without a sliding window

    @property
    def error(self) -> float:
        """Mean over the heads, as are the next two."""
        return statistics.fmean(head.error for head in self.heads)

    @property
    def recall(self) -> float:
        return statistics.fmean(head.recall for head in self.heads)

    @property
    def computed_share(self) -> float:
        return statistics.fmean(head.computed_share for head in self.heads)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "error": self.error,
            "recall": self.recall,
            "computed_share": self.computed_share,
            "heads": [head.record() for head in self.heads],
        }


def compare_patterns(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    files: Sequence[tuple[str, ModelPatterns]],
    *,
    equal_cost: bool = False,
    step: int = 50,
    on_layer: OnLayer | None = None,
) -> list[Comparison]:
    """Runs the patterns of every file on the same q, k and v, those of the dense model.

    Args:
        prompts: each at least 64 tokens.
        files: names and patterns.
        equal_cost: bring every head of the other files to what the same head of the first one
            costs on the prompt, by `equalise`, so that shapes are compared and not sizes. dense
            stays as it is.
        step: by how many lines or tokens sizes change then.
        on_layer: told of every layer that is done.

    Returns:
        One entry per file. Patterns run as they are, without dense fallback.

    Raises:
        ValueError: patterns of a model of another shape, or a model without a layer to compare.
        NotImplementedError, RuntimeError: as `search_patterns`.
    """
    from .capture import visit_layers

    text_config = model.config.get_text_config()
    shape = (text_config.num_hidden_layers, text_config.num_attention_heads)
    for name, patterns in files:
        if (patterns.num_layers, patterns.num_heads) != shape:
            raise ValueError(
                f"{name}: found {patterns.num_layers} layers x {patterns.num_heads} heads; the "
                f"model has {shape[0]} x {shape[1]}"
            )
    found: list[dict[tuple[int, int], list[tuple[HeadPattern, Measured]]]] = [{} for _ in files]
    for number, prompt in enumerate(prompts):

        def visit(layer: Layer, window: int | None, number: int = number) -> Tensor:
            if window is None:
                dense = Dense.of(layer)
                out = dense.out
                of_files = [patterns.layers[layer.layer_idx] for _, patterns in files]
                if equal_cost:
                    of_files = _at_cost_of_first(layer, of_files, step)
                for of_heads, patterns in zip(found, of_files, strict=True):
                    measured = measure(layer, dense, LayerIndex(patterns, dense_fallback=False))
                    for head, one in enumerate(zip(patterns, measured, strict=True)):
                        of_heads.setdefault((layer.layer_idx, head), []).append(one)
            else:
                out, _ = window_attention(layer, window)
            if on_layer is not None:
                on_layer(number, layer.layer_idx)
            return out

        visit_layers(model, prompt.input_ids, visit)
    if not found[0]:
        raise ValueError(NO_FULL_ATTENTION)
    return [
        Comparison(
            name,
            tuple(_mean(layer, head, runs) for (layer, head), runs in sorted(of_heads.items())),
        )
        for (name, _), of_heads in zip(files, found, strict=True)
    ]


def _at_cost_of_first(
    layer: Layer, of_files: list[tuple[HeadPattern, ...]], step: int
) -> list[tuple[HeadPattern, ...]]:
    cost = tile_cost(layer)
    targets = cost(of_files[0])
    rest = [
        tuple(one.pattern for one in equalise(layer, patterns, targets, cost=cost, step=step))
        for patterns in of_files[1:]
    ]
    return [of_files[0], *rest]


def _mean(layer: int, head: int, runs: list[tuple[HeadPattern, Measured]]) -> HeadComparison:
    measured = [one for _, one in runs]
    return HeadComparison(
        layer,
        head,
        runs[-1][0],
        statistics.fmean(one.error for one in measured),
        statistics.fmean(one.recall for one in measured),
        statistics.fmean(one.computed_share for one in measured),
    )
