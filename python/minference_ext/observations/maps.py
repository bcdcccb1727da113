"""Attention maps of a layer of any model, with what a method keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from minference_ext.methods import Layer, LayerIndex, Method
from minference_ext.methods.shapes import Patterns
from minference_ext.pattern_text import pattern_text
from minference_ext.plots.attention_maps import AttentionMap, Strip, cell_of, map_of_strips

from .attended import AttendedPairs, has_index, strip_width
from .prefill import watch_layers
from .strips import WIDTH, strips

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel


def observed_maps(
    model: PreTrainedModel,
    input_ids: Tensor,
    layer_idx: int,
    methods: Mapping[int, Method],
    *,
    cells: int,
    num_last: int,
    roles: Sequence[str] | None = None,
) -> list[AttentionMap]:
    """Maps of some heads of one layer, from a dense prefill up to it.

    A method without an index (one that attends in its own way) leaves open which pairs it attends:
    the maps then show the attention alone, and their attended_share is None.

    Args:
        input_ids: int64 [1, length], no padding.
        methods: of the query heads to show; maps have their order.
        cells: per side of a map, at most.
        num_last: queries at the end that count for recall_last.
        roles: of the layer's heads.

    Raises:
        ValueError: a layer that does not exist or has a sliding window shorter than the prompt, or
            what a method refuses.
    """
    maps: list[AttentionMap] = []

    def watch(layer: Layer, lse: Tensor) -> None:
        if layer.layer_idx != layer_idx:
            return
        indices = {method: _index(method, layer) for method in dict.fromkeys(methods.values())}
        for head, method in methods.items():
            index = indices[method]
            maps.append(
                map_of_strips(
                    layer_idx,
                    head,
                    roles[head].replace("_", " ") if roles else "",
                    _pattern(method, index, head),
                    input_ids.shape[1],
                    _map_strips(layer, lse, index, head, cells),
                    cells=cells,
                    num_last=num_last,
                )
            )

    rotating = [method for method in methods.values() if method.needs_rotation]
    shown = watch_layers(
        model,
        input_ids,
        watch,
        last_layer=layer_idx,
        rotation_for=rotating[0] if rotating else None,
    )
    if layer_idx not in shown:
        raise ValueError(
            f"layer {layer_idx} attends a sliding window shorter than the prompt, or has no "
            "attention of the usual kind: no pattern is applied there, and there is no map of it"
        )
    return maps


def _index(method: Method, layer: Layer) -> LayerIndex | None:
    method.check(layer)
    return method.index(layer) if has_index(method) else None


def _pattern(method: Method, index: LayerIndex | None, head: int) -> str:
    if index is None:
        return "attention alone"
    # A file has a pattern for each head.
    return pattern_text(index.head_patterns[head]) if isinstance(method, Patterns) else str(method)


def _map_strips(
    layer: Layer, lse: Tensor, index: LayerIndex | None, head: int, cells: int
) -> Iterator[Strip]:
    length = layer.q.shape[2]
    k = layer.k[0, head // layer.group]
    pairs = None if index is None else AttendedPairs(layer, index, head)
    width = strip_width(cell_of(length, cells), WIDTH)
    parts = strips(layer.q[0, head], k, lse[0, head], layer.scale, width)
    for first, probability in parts:
        mask = None if pairs is None else pairs.strip(first, first + probability.shape[1])
        yield Strip(first, probability, mask)
