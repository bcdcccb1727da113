"""Where the time of a prefill goes: estimation, plan, attention, and the rest of the model.

One more prefill runs with clocks around the attention function of Transformers. Estimation and plan
are parts of an attention op that cannot be timed inside of it, so both run on their own before each
layer's attention, after a run that warms the caches for both; what all of that takes is taken out
again:

    estimate   `Method.index`, where methods in Python find their lines or blocks, and
               `estimate_vs_index` for the vertical_slash heads that the cost model does not make
               dense beforehand
    plan       `Method.stats` less `estimate`: the plan, and the ranking of blocks of block_sparse.
               It also counts pairs, which attention does not: an upper bound
    attention  the attention function less both: a difference, so it errs the other way
    rest       the prefill less the attention function: projections, MLPs, norms, logits

No part is below 0. All are scaled by one factor, so that they add up to the prefill's median time.
Of a method with an `attend` of its own all of it is attention; so is PyTorch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minference_ext.methods import Layer, LayerIndex, Method
from minference_ext.ops import predict
from minference_ext.vs_index import estimate_vs_index

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a prefill; they add up to it."""

    estimate: float
    plan: float
    attention: float
    rest: float


def measure(
    model: PreTrainedModel, method: Method | None, run: Callable[[], object], seconds: float
) -> Breakdown:
    """Where the time of a prefill goes, from one more of it.

    Args:
        method: what the model attends by; None: PyTorch's attention, which it is set to. The model
            is left with clocks in it: set its attention before the next prefill.
        run: a prefill.
        seconds: what one takes without clocks.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from minference_ext.transformers import NAME, attention, configure
    from minference_ext.transformers.temporary import attention_functions

    clock = _Clock(model.device)
    functions: dict[str, Callable[..., Any]] = {"sdpa": clock.around(sdpa_attention_forward)}
    if method is not None:
        configure(model, _Clocked(method, clock))
        functions = {NAME: clock.around(attention)}
    with attention_functions(functions):
        begin = clock.now()
        run()
        whole = clock.now() - begin - clock.alone
    layers = clock.layers - clock.alone
    estimate = min(clock.estimate, layers)
    plan = min(max(0.0, clock.stats - clock.estimate), layers - estimate)
    scale = seconds / whole
    return Breakdown(
        estimate=scale * estimate,
        plan=scale * plan,
        attention=scale * (layers - estimate - plan),
        rest=scale * (whole - layers),
    )


class _Clock:
    """Seconds over all layers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.layers = 0.0  # within attention functions
        self.estimate = 0.0
        self.stats = 0.0  # estimates and plans
        self.alone = 0.0  # within `layers`, what runs for the clock alone

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            result = function(*args, **kwargs)
            self.layers += self.now() - begin
            return result

        return run


class _Clocked(Method):
    """A method that also runs its estimation and its plan on their own, and times them."""

    name = "clocked"
    summary = "Another method, timed."
    source = "that of the other"

    def __init__(self, method: Method, clock: _Clock) -> None:
        self.needs_rotation = method.needs_rotation  # type: ignore[misc]  # of each, not of all
        self._method, self._clock = method, clock

    def index(self, layer: Layer) -> LayerIndex:
        return self._method.index(layer)

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        if type(self._method).attend is Method.attend:
            clock = self._clock
            first = clock.now()
            self._method.stats(layer)
            begin = clock.now()
            _estimate(self._method.index(layer), layer)
            middle = clock.now()
            self._method.stats(layer)
            end = clock.now()
            clock.estimate += middle - begin
            clock.stats += end - middle
            clock.alone += end - first
        return self._method.attend(layer)


def _estimate(index: LayerIndex, layer: Layer) -> None:
    """What `sparse_attention` estimates for heads of kind vertical_slash."""
    q_len, kv_len = layer.q.shape[2], layer.k.shape[2]
    every = index.estimate_every or max(1, q_len)
    for begin in range(0, q_len, every):
        end = min(begin + every, q_len)
        keys = kv_len - q_len + end
        heads = [
            head
            for head, pattern in enumerate(index.head_patterns)
            if pattern.kind == "vertical_slash"
            and not (
                index.dense_fallback
                and index.mode == "cover"
                and predict(pattern, end - begin, keys).is_dense
            )
        ]
        if heads:
            part = layer.heads(heads)
            sizes = [index.head_patterns[head].sizes for head in heads]
            estimate_vs_index(
                part.q[:, :, begin:end],
                part.k[:, :, :keys],
                [vertical for vertical, _ in sizes],
                [slash for _, slash in sizes],
                softmax_scale=layer.softmax_scale,
            )
