"""What the heads of the retrieval model attend, and what their patterns compute of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minference_ext.attended import attended_mask
from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern
from minference_ext.plots.attention_maps import AttentionMap, attention_map

from .measure import attention_functions

if TYPE_CHECKING:  # it needs transformers
    from transformers import LlamaForCausalLM

    from minference_ext.testing import RetrievalPrompt


def head_maps(
    model: LlamaForCausalLM,
    prompt: RetrievalPrompt,
    patterns: Sequence[Sequence[HeadPattern]],
    roles: Sequence[Sequence[str]],
    blocks: int = 256,
) -> list[AttentionMap]:
    """Maps of all heads, layer by layer, from one dense prefill of the prompt.

    Memory: some matrices [length, length] in float32.

    patterns, roles: [num_layers][num_heads]. blocks: per side of a map, at most.
    """
    maps = []
    for layer, (query, key) in enumerate(_queries_and_keys(model, prompt)):
        length, group = query.shape[2], query.shape[1] // key.shape[1]
        for head, (pattern, role) in enumerate(zip(patterns[layer], roles[layer], strict=True)):
            q, k = query[0, head], key[0, head // group]
            maps.append(
                attention_map(
                    layer,
                    head,
                    role.replace("_", " "),
                    pattern_text(pattern),
                    probabilities(q, k),
                    attended_mask(q, k, pattern),
                    blocks=min(blocks, length),
                    num_last=length - prompt.answer_positions[0] + 1,
                )
            )
    return maps


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """float32 [length, length] of dense causal attention; q and k [length, head_dim]."""
    scores = (q.float() @ k.float().T) / math.sqrt(q.shape[1])
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill_(future, -math.inf).softmax(dim=-1)


def _queries_and_keys(
    model: LlamaForCausalLM, prompt: RetrievalPrompt
) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, after RoPE: [1, heads, length, head_dim], [1, kv heads, length, head_dim]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from minference_ext.testing import answer_logits

    seen: list[tuple[Tensor, Tensor]] = []

    def record(
        module: torch.nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        seen.append((query, key))
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    model.set_attn_implementation("sdpa")
    with attention_functions({"sdpa": record}):
        answer_logits(model, prompt)
    return seen
