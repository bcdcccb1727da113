"""Attention of Transformers, changed for a while: what a name means, or what one model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, PreTrainedModel

from .settings import configure


@contextmanager
def attention_functions(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within it, Transformers finds these functions under these names, which it must know."""
    interface = AttentionInterface()
    before = {name: interface[name] for name in functions}
    try:
        for name, function in functions.items():
            AttentionInterface.register(name, function)
        yield
    finally:
        for name, function in before.items():
            AttentionInterface.register(name, function)


@contextmanager
def attention_kept(model: PreTrainedModel) -> Iterator[None]:
    """Behind it the model has the attention it had before, also after an error.

    What `configure` set on the model is gone then, hooks included.

    Raises:
        ValueError: a model that `configure` refuses.
    """
    before = model.config.get_text_config()._attn_implementation
    try:
        yield
    finally:
        configure(model)  # lets go of methods, and of their hooks
        set_attention(model, before)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Switches the text part of a model; vision and audio parts keep what they have."""
    config = model.config
    text_config = config.get_text_config()
    parts = [part for part in config.sub_configs if getattr(config, part, None) is text_config]
    model.set_attn_implementation({parts[0]: name} if parts else name)
