"""Tiny random models of the families whose attention differs, built from their config alone.

    model = build(FAMILIES[0])                                  # float32, attention "eager"
    truth = build(FAMILIES[0]).double()                         # the same weights
    with float64_throughout(truth):
        truth(input_ids)                                        # without Transformers' fp32 parts

Each family is as small as what makes its attention special allows: head_dim, the group of query
heads per key head, sliding windows, biases, norms and rotations of query and key are those of its
real models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor

VOCABULARY = 97
LAYERS = 2
FIRST_WORD = 3  # ids below are padding, begin and end

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # scores far enough apart that a pattern matters
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """One row of the table: classes of Transformers by name, and what to set in the config."""

    name: str
    special: str  # what attention has to get right here and nowhere else
    architecture: str  # Glm4 -> Glm4ForCausalLM
    config: str = ""  # Gemma3Text where the config's name is not the architecture's
    settings: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    layers_with_window: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def all_layers_have_windows(self) -> bool:
        return len(self.layers_with_window) == LAYERS


FAMILIES = (
    Family("llama", "two query heads per key head", "Llama", settings={"head_dim": 32}),
    Family(
        "mistral",
        "window in all layers, between the first chunk and the prompt",
        "Mistral",
        settings={"head_dim": 32, "sliding_window": 200},
        window=200,
        layers_with_window=(0, 1),
    ),
    Family(
        "qwen2",
        "full and windowed layers, bias on q, k and v, four query heads per key head",
        "Qwen2",
        settings={
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 50,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        window=50,
        layers_with_window=(1,),
    ),
    Family("qwen3", "norm of q and k", "Qwen3", settings={"head_dim": 32}),
    Family(
        "phi3",
        "head_dim 96, v a view into fused qkv, partial rotation, window beyond the prompt",
        "Phi3",
        settings={
            "hidden_size": 384,
            "initializer_range": 0.08,  # hidden_size is six times as large
            "partial_rotary_factor": 0.5,
            "sliding_window": 1000,
        },
    ),
    Family(
        "phi3-window",
        "the same with a window that is never longer than the keys of a prefill",
        "Phi3",
        settings={
            "hidden_size": 384,
            "initializer_range": 0.08,
            "num_key_value_heads": 4,
            "sliding_window": 33,
        },
        window=33,
        layers_with_window=(0, 1),
    ),
    Family(
        "glm",
        "interleaved partial rotation, eight query heads per key head",
        "Glm",
        settings={"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16},
    ),
    Family(
        "glm4",
        "the same with norms behind attention and two key heads",
        "Glm4",
        settings={"num_attention_heads": 8, "head_dim": 16},
    ),
    Family(
        "gemma",
        "head_dim 256, one key head",
        "Gemma",
        settings={"num_key_value_heads": 1, "head_dim": 256},
    ),
    Family(
        "gemma3",
        "windowed and full layers with own rotations, head_dim 256, scaling not its root",
        "Gemma3",
        config="Gemma3Text",
        settings={
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 40,  # q and k are normed: a larger scale sets scores apart
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        window=70,
        layers_with_window=(0,),
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}

# Families that pass attention an argument the integration refuses, and the argument's name.
REFUSED = {
    "softcap": Family("gemma2", "", "Gemma2", settings={"head_dim": 32}),
    "s_aux": Family(
        "gpt-oss",
        "",
        "GptOss",
        settings={"head_dim": 32, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}


def build(
    family: Family,
    attn_implementation: str = "eager",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Any:
    """The same random weights on every call."""
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{family.config or family.architecture}Config")
    model_class = getattr(transformers, f"{family.architecture}ForCausalLM")
    config = config_class(**{**_SIZES, **family.settings, **overrides})
    model = model_class._from_config(config, attn_implementation=attn_implementation)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Transformers sets these to constants, which would hide that one is left out.
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if family.name == "qwen3" and name.endswith("q_norm.weight"):
                parameter.mul_(2.5)  # normed q and k: sets scores apart
    return model.to(dtype).eval()


@contextmanager
def float64_throughout(model: torch.nn.Module) -> Iterator[None]:
    """Within it, a float64 model computes its norms and softmax in float64, too.

    Transformers' models name float32 there whatever their own type is. Rotations keep the float32
    tables of the model that is measured: their error is the same under every attention.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.data = buffer.data.to(torch.float)  # .double() converted it

    def to_float(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float)

    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(Tensor, "float", to_float),
    ):
        yield
