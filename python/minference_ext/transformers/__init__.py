"""Sparse prefill in Hugging Face Transformers, as the attention implementation "minference".

    import minference_ext.transformers  # registers the name
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="minference")
    minference_ext.transformers.configure(model, "patterns.json")

A call with 64 query rows or more is a prefill, or a chunk of one, and runs the patterns; shorter
ones, decoding above all, are dense and run PyTorch's own attention. In a layer with a sliding
window every head attends its window. Two functions are registered, and both are needed: for a name
without a mask function Transformers drops the mask of a padded batch. For a prefill ours is never
[query, key]: it is `None`, or bool [batch, kv_len] by slot of the cache.

While torch.compile traces, data cannot be read. A mask is then taken to be left-padded, with free
slots of a static cache behind it; position_ids that pack several sequences, and tokens that a model
lets attend later ones, go unseen.
"""

from __future__ import annotations

try:
    from transformers import AttentionInterface, AttentionMaskInterface
except ImportError as error:
    raise ImportError(
        "minference_ext.transformers needs transformers 4.57 or later: "
        f"pip install 'transformers>=4.57' ({error})"
    ) from error

from .masks import attention_mask
from .mlp import chunk_mlp
from .prefill import attention
from .settings import (
    DEFAULT_PATTERN,
    NAME,
    LayerPlan,
    Patterns,
    configure,
    record_plans,
)

__all__ = [
    "DEFAULT_PATTERN",
    "NAME",
    "LayerPlan",
    "Patterns",
    "attention",
    "attention_mask",
    "chunk_mlp",
    "configure",
    "record_plans",
    "register",
]


def register() -> None:
    """Registers "minference" with Transformers. Importing this module does."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


register()
