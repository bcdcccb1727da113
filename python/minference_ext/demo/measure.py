"""Prefills of the retrieval model, timed: one method after the other, in turns."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minference_ext.patterns import PlanStats

from .methods import Patterns, description

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import LlamaForCausalLM

    from minference_ext.testing import RetrievalPrompt


@dataclass
class Result:
    """What one method did; the baseline is PyTorch's dense attention."""

    method: str
    description: str
    seconds: list[float] = field(default_factory=list)  #: of each prefill
    attention_seconds: list[float] = field(default_factory=list)  #: attention alone, likewise
    computed_share: float = 1.0  #: pairs multiplied / pairs of the causal matrix
    attended_share: float = 1.0  #: pairs that enter a softmax, likewise
    dense_heads: int | None = None  #: heads computed densely, by the cost model; None: not sparse
    num_heads: int = 0  #: of all layers
    retrieved: list[bool] = field(default_factory=list)  #: by depth
    max_logit_difference: float | None = None  #: to the baseline, at the asked positions
    speedup: float | None = None  #: of the prefill over the baseline's
    attention_speedup: float | None = None  #: of attention alone, likewise

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_attention_seconds(self) -> float:
        return statistics.median(self.attention_seconds)

    def record(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            **asdict(self),
            "median_seconds": self.median_seconds,
            "median_attention_seconds": self.median_attention_seconds,
        }


class _Clock:
    """Adds up the time spent in attention functions of Transformers."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - begin
            return result

        return run


class Progress:
    """Layers done: a bar on a terminal, else a line per prefill, on stderr.

    has_lines: without a terminal, a line per prefill.
    """

    def __init__(self, num_layers: int, num_prefills: int, *, has_lines: bool = True) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

        self._is_terminal = sys.stderr.isatty()
        self._has_lines = has_lines
        self._bar = tqdm(
            total=num_layers * num_prefills,
            unit="layer",
            leave=False,
            disable=not self._is_terminal,
            bar_format="{desc:<30}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} layers, {elapsed}",
        )

    @contextmanager
    def prefill(self, model: LlamaForCausalLM, name: str) -> Iterator[None]:
        def layer_done(*_: object) -> None:  # what a hook returns would replace the layer's output
            self._bar.update(1)

        self._bar.set_description_str(name)
        hooks = [layer.register_forward_hook(layer_done) for layer in model.model.layers]
        begin = time.perf_counter()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if self._has_lines:
            self.line(name, time.perf_counter() - begin)

    def line(self, name: str, seconds: float) -> None:
        """Says what is done where there is no bar."""
        if not self._is_terminal:
            print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def measure(
    model: LlamaForCausalLM,
    prompt: RetrievalPrompt,
    settings: Mapping[str, Patterns | None],
    repeat: int,
    progress: Progress,
) -> list[Result]:
    """Methods take turns, so that a load on the machine that comes and goes meets all alike.

    settings: patterns by method, of the warm-up and `repeat` prefills each.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from minference_ext import transformers as minference_transformers
    from minference_ext.testing import answer_logits, retrieved
    from minference_ext.transformers.temporary import attention_functions

    def select(patterns: Patterns | None) -> None:
        if patterns is None:
            model.set_attn_implementation("sdpa")
        else:
            minference_transformers.configure(model, patterns)  # switches to "minference"

    clock = _Clock()
    timed = {
        "sdpa": clock.timed(sdpa_attention_forward),
        minference_transformers.NAME: clock.timed(minference_transformers.attention),
    }
    results = {
        name: Result(name, description(name, patterns)) for name, patterns in settings.items()
    }
    logits: dict[str, Tensor] = {}
    with attention_functions(timed):
        for name, patterns in settings.items():
            select(patterns)
            with progress.prefill(model, f"{name}, warm-up"):
                if patterns is None:
                    answer_logits(model, prompt)
                else:
                    with minference_transformers.record_plans(model) as plans:
                        answer_logits(model, prompt)
                    _add_stats(results[name], [plan.stats for plan in plans])
        for turn in range(repeat):
            for name, patterns in settings.items():
                select(patterns)
                clock.seconds = 0.0
                with progress.prefill(model, f"{name}, prefill {turn + 1} of {repeat}"):
                    begin = time.perf_counter()
                    logits[name] = answer_logits(model, prompt)
                    results[name].seconds.append(time.perf_counter() - begin)
                results[name].attention_seconds.append(clock.seconds)

    for name, result in results.items():
        result.retrieved = retrieved(logits[name], prompt)
        dense = results.get("dense")
        if dense is not None:
            difference = logits[name].float() - logits["dense"].float()
            result.max_logit_difference = float(difference.abs().max())
            result.speedup = dense.median_seconds / result.median_seconds
            result.attention_speedup = (
                dense.median_attention_seconds / result.median_attention_seconds
            )
    return list(results.values())


def _add_stats(result: Result, layers: list[PlanStats]) -> None:
    causal = sum(int(stats.causal_pairs.sum()) for stats in layers)
    computed = sum(int(stats.computed_pairs.sum()) for stats in layers)
    result.computed_share = computed / causal
    result.attended_share = sum(int(stats.attended_pairs.sum()) for stats in layers) / causal
    result.dense_heads = sum(int(stats.is_dense.sum()) for stats in layers)
    result.num_heads = sum(stats.is_dense.numel() for stats in layers)
