"""MLPs over pieces of a long prompt: their activations are the largest tensors of its prefill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def chunk_mlp(model: nn.Module, tokens: int | None = 32768) -> int:
    """Runs the MLP of every layer over at most `tokens` tokens at a time (MInference, app. C.3).

    An MLP works on each token alone, so this changes the memory and nothing else. Calling it again
    replaces the number; None undoes it.

    Args:
        model: any with gated MLPs as in Llama, known by an attribute `mlp` that has a `down_proj`.
            Mixtures of experts are left alone.

    Returns:
        The number of MLPs it set.

    Raises:
        ValueError: `tokens` < 1, or no such MLP in the model.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens is {tokens}; it must be >= 1, or None")
    mlps: list[Any] = [
        layer.mlp
        for layer in model.modules()
        if isinstance(getattr(layer, "mlp", None), nn.Module) and hasattr(layer.mlp, "down_proj")
    ]
    if not mlps:
        raise ValueError(f"model: {type(model).__name__} has no layer with an mlp.down_proj")
    for mlp in mlps:
        whole = mlp.forward.whole if isinstance(mlp.forward, _InPieces) else mlp.forward
        mlp.forward = whole if tokens is None else _InPieces(whole, tokens)
    return len(mlps)


class _InPieces:
    """forward() of an MLP over pieces of the token axis."""

    def __init__(self, whole: Callable[[Tensor], Tensor], tokens: int) -> None:
        self.whole = whole
        self._tokens = tokens

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """[..., tokens, hidden_size] to the same."""
        num_tokens = hidden_states.shape[-2]
        if num_tokens <= self._tokens:
            return self.whole(hidden_states)
        pieces = hidden_states.split(self._tokens, dim=-2)
        if torch.is_grad_enabled():
            return torch.cat([self.whole(piece) for piece in pieces], dim=-2)
        out = torch.empty_like(hidden_states)  # cat would hold the result twice
        for index, piece in enumerate(pieces):
            out.narrow(-2, index * self._tokens, piece.shape[-2]).copy_(self.whole(piece))
        return out
