"""The queries and keys of every layer, from a dense prefill of one prompt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex, Method
from minference_ext.ops import dense_attention
from minference_ext.patterns import HeadPattern

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel

MIN_LENGTH = 64  # of a prompt: shorter calls are no prefill and run PyTorch's attention

#: Called with a layer and the natural logarithm of its softmax sums, float32 [1, H, length].
Watch = Callable[[Layer, Tensor], None]


def watch_layers(
    model: PreTrainedModel,
    input_ids: Tensor,
    watch: Watch,
    *,
    last_layer: int | None = None,
    rotation_for: Method | None = None,
) -> list[int]:
    """Prefills a prompt densely and shows each layer to `watch`.

    The model keeps none of it: it has the attention it had before, but what `configure` set on it
    is gone. Layers with a sliding window shorter than the prompt are not shown.

    Args:
        input_ids: int64 [1, length], length >= MIN_LENGTH, no padding.
        last_layer: where to stop; None: after the last.
        rotation_for: a method that needs the layers' `rotation`, which not every model allows.

    Returns:
        The layers shown, in their order.

    Raises:
        ValueError: a shape, a model without layers of causal attention, or one whose rotation
            `rotation_for` cannot undo.
        RuntimeError: there is no dense attention for the model's dtype on its device.
    """
    from minference_ext.transformers import configure
    from minference_ext.transformers.temporary import attention_kept

    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < MIN_LENGTH:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}; it must be [1, length] with at least "
            f"{MIN_LENGTH} tokens"
        )
    watcher = _Watcher(watch, last_layer, rotation_for)
    with suppress(_Stop), attention_kept(model), torch.inference_mode():
        configure(model, watcher)
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    return watcher.seen


class _Stop(Exception):
    """Ends a prefill of which nobody needs the rest."""


class _Watcher(Method):
    """Dense attention that shows what it is given."""

    name = "watcher"
    summary = "Dense attention, watched."
    source = "none"

    def __init__(self, watch: Watch, last_layer: int | None, rotation_for: Method | None) -> None:
        self._watch, self._last_layer = watch, last_layer
        if rotation_for is not None:  # of this watcher, not of all
            self.name = rotation_for.name  # type: ignore[misc]
            self.needs_rotation = True  # type: ignore[misc]
        self.seen: list[int] = []

    def index(self, layer: Layer) -> LayerIndex:
        return LayerIndex((HeadPattern.dense(),) * layer.num_heads)

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        out, lse = dense_attention(layer.q, layer.k, layer.v, softmax_scale=layer.softmax_scale)
        self._watch(layer, lse)
        self.seen.append(layer.layer_idx)
        if layer.layer_idx == self._last_layer:
            raise _Stop
        return out, lse
