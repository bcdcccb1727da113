"""q, k and v of every layer of a model, one layer at a time, while the model reads a prompt.

Needs Transformers, unlike the rest of this package. An attention function of the name
"minference_search" hands each layer to a visitor, whose answer is the attention output that the
model goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from minference_ext.methods import Layer
from minference_ext.transformers import attention_mask, chunk_mlp
from minference_ext.transformers.prefill import refuse_unsupported, window_of

NAME = "minference_search"
_MLP_TOKENS = 4096  # its activations are then smaller than q, k and v of a long prompt

#: Gets a layer and its sliding window (None: none that hides a key of this prompt), and returns the
#: attention output [1, H, length, head_dim].
Visit: TypeAlias = Callable[[Layer, int | None], Tensor]

_visit: ContextVar[Visit | None] = ContextVar("minference_search_visit", default=None)


def visit_layers(model: PreTrainedModel, input_ids: Tensor, visit: Visit) -> None:
    """Runs the prompt through the model once; `visit` attends every layer, in their order.

    The model is as before afterwards, also after an error.

    Args:
        input_ids: int64 [1, length], length >= 64.

    Raises:
        NotImplementedError: attention of a kind that "minference" does not run.
        ValueError: a model that does not call attention functions of Transformers.
    """
    num_visited = 0

    def counted(layer: Layer, window: int | None) -> Tensor:
        nonlocal num_visited
        num_visited += 1
        return visit(layer, window)

    with _attention_of(model, NAME), _mlp_in_pieces(model), torch.inference_mode():
        token = _visit.set(counted)
        try:
            model(input_ids=input_ids.to(model.device), use_cache=False, logits_to_keep=1)
        finally:
            _visit.reset(token)
    if num_visited == 0:
        raise ValueError(
            f"model: {type(model).__name__} calls no attention function of Transformers"
        )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `minference_ext.transformers.attention`, for one whole prompt."""
    refuse_unsupported(module, dropout, is_causal, kwargs)
    visit = _visit.get()
    if visit is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError(
            f'attn_implementation="{NAME}" is for the prompts of minference_ext.search alone'
        )
    layer = Layer(query, key, value, layer_idx=int(module.layer_idx), softmax_scale=scaling)
    out = visit(layer, window_of(module, sliding_window, key.shape[2]))
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, attention_mask)


@contextmanager
def _attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within it, the model's text part runs that attention."""
    config = model.config
    text_config = config.get_text_config()
    parts = [part for part in config.sub_configs if getattr(config, part, None) is text_config]
    before = text_config._attn_implementation
    try:
        model.set_attn_implementation({parts[0]: name} if parts else name)
        yield
    finally:
        model.set_attn_implementation({parts[0]: before} if parts else before)


@contextmanager
def _mlp_in_pieces(model: PreTrainedModel) -> Iterator[None]:
    """Within it, MLPs that can be cut run over pieces of the prompt."""
    own = [(module, vars(module).get("forward")) for module in model.modules()]
    with suppress(ValueError):  # no MLP of that kind: memory is the model's own affair
        chunk_mlp(model, _MLP_TOKENS)
    try:
        yield
    finally:
        for module, forward in own:
            if forward is not None:
                module.forward = forward
            elif "forward" in vars(module):
                del module.forward
