"""A tiny random Llama for tests of the Transformers integration: the same weights on every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, LAYERS, VOCABULARY = 4, 2, 2, 97
TOLERANCE = 2e-5  # float32 logits of order 0.1 after two layers


def tiny(attn_implementation: str = "eager", **overrides: Any) -> LlamaForCausalLM:
    """The same random weights on every call."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": 32,
        "initializer_range": 0.2,  # scores far enough apart that a pattern matters
        **overrides,
    }
    config = LlamaConfig(**settings)
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(
        config, attn_implementation=attn_implementation
    )
    model.eval()
    return model


def tokens(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def padded(length: int, *rows: tuple[int, int]) -> Tensor:
    """int64 [rows, length]: 1 in begin .. end of each row."""
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (begin, end) in enumerate(rows):
        mask[row, begin:end] = 1
    return mask


def logits(model: LlamaForCausalLM, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
    return model(input_ids=ids, attention_mask=mask, **kwargs).logits


def largest_difference(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Over the tokens that are no padding."""
    difference = (a - b).abs()
    return float(difference.max() if mask is None else difference[mask.bool()].max())
