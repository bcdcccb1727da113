"""Attention maps of a layer of any model, with what a method keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex, Method
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
    heads: Sequence[int],
    method: Method,
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
        heads: query heads of the layer.
        cells: per side of a map, at most.
        num_last: queries at the end that count for recall_last.
        roles: of the layer's heads.

    Raises:
        ValueError: a layer that does not exist or has a sliding window shorter than the prompt, or
            what the method refuses.
    """
    maps: list[AttentionMap] = []

    def watch(layer: Layer, lse: Tensor) -> None:
        if layer.layer_idx != layer_idx:
            return
        index = _index(method, layer)
        maps.extend(
            map_of_strips(
                layer_idx,
                head,
                roles[head].replace("_", " ") if roles else "",
                "attention alone" if index is None else str(method),
                input_ids.shape[1],
                _map_strips(layer, lse, index, head, cells),
                cells=cells,
                num_last=num_last,
                is_known=index is not None,
            )
            for head in heads
        )

    if layer_idx not in watch_layers(model, input_ids, watch, last_layer=layer_idx):
        raise ValueError(
            f"layer {layer_idx} attends a sliding window shorter than the prompt: no pattern is "
            "applied there, and there is no map of it"
        )
    return maps


def _index(method: Method, layer: Layer) -> LayerIndex | None:
    method.check(layer)
    return method.index(layer) if has_index(method) else None


def _map_strips(
    layer: Layer, lse: Tensor, index: LayerIndex | None, head: int, cells: int
) -> Iterator[Strip]:
    length = layer.q.shape[2]
    kv_head = head // (layer.num_heads // layer.k.shape[1])
    pairs = None if index is None else AttendedPairs(layer, index, head)
    width = strip_width(cell_of(length, cells), WIDTH)
    parts = strips(layer.q[0, head], layer.k[0, kv_head], lse[0, head], layer.scale, width)
    for first, probability in parts:
        if pairs is None:
            mask = torch.ones(probability.shape, dtype=torch.bool)
        else:
            mask = pairs.strip(first, first + probability.shape[1])
        yield Strip(first, probability.cpu(), mask)
