"""Autograd policy: the ops have no backward, and say so instead of dropping gradients silently.

A call on tensors that require grad computes the forward; `.backward()` through it raises. The
overloads that write into `out` and `lse` raise at once, as PyTorch's own do. Not
torch.library.register_autograd: it takes no op with keyword-only tensors and none that writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import Library

from .fake import ATTENTION_OPS

MESSAGE = (
    "minference ops have no backward; they are for inference: call them under torch.no_grad() or "
    "on detached tensors"
)

_registry = Library("minference", "IMPL")


class _WithoutBackward(torch.autograd.Function):
    """Results of `run` that require grad; going back through them raises."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], *tensors: Tensor) -> Any:
        return run()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(MESSAGE)


def _register(op: Any) -> None:
    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

        if not torch.is_grad_enabled():
            return run()
        tensors = [
            value
            for value in (*args, *kwargs.values())
            if isinstance(value, Tensor) and value.requires_grad
        ]
        if not tensors:
            return run()
        if op._schema.is_mutable:
            raise NotImplementedError(f"{op}: an argument requires grad, but {MESSAGE}")
        return _WithoutBackward.apply(run, *tensors)

    _registry.impl(op.name().split("::")[1], kernel, "Autograd", with_keyset=True)


for _name in ATTENTION_OPS:
    _register(getattr(torch.ops.minference, _name).default)
    _register(getattr(torch.ops.minference, _name).out)
for _name in ("estimate_vs_index", "estimate_vs_scores", "plan_stats"):
    _register(getattr(torch.ops.minference, _name).default)
