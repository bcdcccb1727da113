"""Models of known shapes with random weights: without a download, where only time matters.

Widths are those of the models' published config.json. Weights are drawn as Transformers initialises
them, so attention has no lines: scores are spread over all keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel

MAX_POSITIONS = 1 << 20  # RoPE goes on: what is said at such distances does not matter here


@dataclass(frozen=True)
class ModelShape:
    """Widths of a Llama, or of a Qwen2, which has biases on q, k and v."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    family: str = "llama"  #: or qwen2
    has_tied_embeddings: bool = False


SHAPES = {
    "llama-3-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "qwen2.5-7b": ModelShape(28, 3584, 18944, 28, 4, 128, 152064, 1e6, family="qwen2"),
    "llama-3.2-1b": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, 5e5, has_tied_embeddings=True),
    "tiny": ModelShape(4, 256, 704, 4, 2, 64, 1024, 1e4),
}


def random_model(
    shape: ModelShape, num_layers: int, *, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    """The first `num_layers` layers of that shape with PyTorch's attention; the same on every call.

    Weights are drawn on `device`, in eval mode and without gradients.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    families: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    config_type, model_type = families[shape.family]
    # Transformers 5 turns rope_theta into rope_parameters, which 4.57 does not know.
    settings: dict[str, Any] = {"rope_theta": shape.rope_theta, "head_dim": shape.head_dim}
    config = config_type(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=shape.has_tied_embeddings,
        **settings,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model: PreTrainedModel = model_type._from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    model.requires_grad_(False)
    model.eval()
    return model
