"""What the heads of the retrieval model attend, and what their patterns keep of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minference_ext.methods import of_pattern
from minference_ext.observations import observed_maps
from minference_ext.patterns import HeadPattern
from minference_ext.plots.attention_maps import AttentionMap

if TYPE_CHECKING:  # it needs transformers
    from transformers import LlamaForCausalLM

    from minference_ext.testing import RetrievalPrompt


def head_maps(
    model: LlamaForCausalLM,
    prompt: RetrievalPrompt,
    patterns: Sequence[Sequence[HeadPattern]],
    roles: Sequence[Sequence[str]],
    cells: int = 256,
) -> list[AttentionMap]:
    """Maps of all heads, layer by layer.

    patterns, roles: [num_layers][num_heads]. cells: per side of a map, at most.
    """
    length = prompt.input_ids.shape[1]
    maps = []
    for layer, of_layer in enumerate(patterns):
        maps += observed_maps(
            model,
            prompt.input_ids,
            layer,
            {head: of_pattern(pattern) for head, pattern in enumerate(of_layer)},
            cells=cells,
            num_last=length - prompt.answer_positions[0] + 1,
            roles=roles[layer],
        )
    return maps
