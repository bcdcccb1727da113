"""A model's prefill, from token ids to the last token's logits, by method and length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minference_ext.methods import Method
from minference_ext.patterns import PlanStats

from . import breakdown
from .attention import SDPA
from .breakdown import Breakdown
from .memory import peak_increase
from .timing import in_turns

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel

MIN_LENGTH = 64  # shorter calls are no prefill: they run PyTorch's attention whatever the method


@dataclass(frozen=True)
class Row:
    """One method at one length."""

    length: int  #: tokens
    method: str  #: SDPA, or a method with its parameters
    seconds: list[float]  #: of each round, estimation included
    speedup: float  #: over SDPA, median of the rounds' ratios
    computed_share: float = 1.0  #: pairs multiplied / pairs of the causal matrix, all layers
    peak_bytes: int | None = None  #: memory at its peak less that before the prefill; None: unknown
    breakdown: Breakdown | None = None  #: where it was asked for
    median_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median_seconds", statistics.median(self.seconds))


def measure(
    model: PreTrainedModel,
    methods: Sequence[Method],
    lengths: Sequence[int],
    prompt: Callable[[int], Tensor],
    *,
    rounds: int,
    has_breakdown: bool = False,
    begin: Callable[[str], object] | None = None,
) -> Generator[list[Row], None, None]:
    """Rows of each length in turn: SDPA first, then every method.

    At each length every contender runs twice before its time counts, once for what it computes and
    once for its memory; then they take turns. A method that remembers earlier prompts forgets them
    before each length, and learns from the first of its prefills, which does not count.

    Args:
        model: one of Transformers with PyTorch's attention, which it has again in the end, also if
            the iterator is closed or raises.
        lengths: tokens, at least MIN_LENGTH each.
        prompt: token ids [1, length] of a length.
        has_breakdown: one more prefill each, to tell its parts.
        begin: called before each prompt and prefill, with its length and method in a few words.

    Raises:
        ValueError: a length below MIN_LENGTH, or a method that is not for this model.
    """
    from minference_ext.transformers.temporary import attention_kept

    if min(lengths, default=MIN_LENGTH) < MIN_LENGTH:
        raise ValueError(f"lengths has {min(lengths)}; a prefill has at least {MIN_LENGTH} tokens")
    contenders: dict[str, Method | None] = {SDPA: None}
    contenders |= {str(method): method for method in methods}
    with attention_kept(model):
        for length in lengths:
            if begin is not None:
                begin(f"{length} tokens")
            ids = prompt(length).to(model.device)
            yield _rows(model, contenders, ids, rounds, has_breakdown, begin)


def prefill(model: PreTrainedModel, ids: Tensor) -> None:
    """[1, length] to the logits of the last token, without a cache; done on return."""
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)


def attend_by(model: PreTrainedModel, method: Method | None) -> None:
    """Sets what the model attends by; None: PyTorch's attention."""
    from minference_ext.transformers import configure
    from minference_ext.transformers.temporary import set_attention

    if method is None:
        set_attention(model, "sdpa")
    else:
        configure(model, method)


@contextmanager
def chunked_mlps(model: PreTrainedModel, tokens: int | None) -> Iterator[bool]:
    """Within it, MLPs take at most that many tokens at a time; None: all.

    Yields whether they do: a model without MLPs that `chunk_mlp` knows runs as it is.
    """
    from minference_ext.transformers import chunk_mlp

    is_chunked = False
    if tokens is not None:
        with suppress(ValueError):
            is_chunked = chunk_mlp(model, tokens) > 0
    try:
        yield is_chunked
    finally:
        if is_chunked:
            chunk_mlp(model, None)


def _rows(
    model: PreTrainedModel,
    contenders: Mapping[str, Method | None],
    ids: Tensor,
    rounds: int,
    has_breakdown: bool,
    begin: Callable[[str], object] | None,
) -> list[Row]:
    length = ids.shape[1]
    run = partial(prefill, model, ids)

    def prepare(name: str) -> None:
        if begin is not None:
            begin(f"{length} tokens, {name}")
        attend_by(model, contenders[name])

    shares: dict[str, float] = {}
    peaks: dict[str, int | None] = {}
    for name, method in contenders.items():
        prepare(name)
        shares[name] = _computed_share(model, method, run)
        peaks[name] = peak_increase(run, model.device)
    times = in_turns(dict.fromkeys(contenders, run), rounds=rounds, prepare=prepare)
    parts: dict[str, Breakdown] = {}
    if has_breakdown:
        for name, method in contenders.items():
            prepare(name)
            parts[name] = breakdown.measure(model, method, run, times.median(name))
    return [
        Row(
            length,
            name,
            times.seconds[name],
            times.ratio(SDPA, name),
            shares[name],
            peaks[name],
            parts.get(name),
        )
        for name in contenders
    ]


def _computed_share(
    model: PreTrainedModel, method: Method | None, run: Callable[[], object]
) -> float:
    """Runs, and counts what the layers compute."""
    from minference_ext.transformers import record_plans

    if method is None:
        run()
        return 1.0
    method.forget()
    with record_plans(model) as plans:
        run()
    layers: list[PlanStats] = [plan.stats for plan in plans]
    computed = sum(int(stats.computed_pairs.sum()) for stats in layers)
    return computed / sum(int(stats.causal_pairs.sum()) for stats in layers)
