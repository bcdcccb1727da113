"""What a model runs: patterns per layer and head, options, and what its layers computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast, get_args

import torch
from transformers import PreTrainedModel

from minference_ext.methods import Method, by_name, of_pattern
from minference_ext.methods.shapes import Patterns as PatternsMethod
from minference_ext.model_patterns import ModelPatterns
from minference_ext.ops import SlashMode
from minference_ext.patterns import HeadPattern, PlanStats

from .rotation import check_rotation, keep_rotation

NAME = "minference"
DEFAULT_PATTERN = HeadPattern.vertical_slash(1000, 6096)  # the largest sizes MInference searches

#: One pattern or method for all heads, one per head ([layers][query heads]), or where to read
#: patterns: a file or a published name, as `ModelPatterns.load` takes it.
Patterns: TypeAlias = (
    HeadPattern
    | Method
    | ModelPatterns
    | Sequence[Sequence[HeadPattern | Method]]
    | str
    | os.PathLike[str]
)


@dataclass(frozen=True)
class LayerSettings:
    """What `configure` leaves on an attention module."""

    patterns: tuple[HeadPattern, ...]  # one per query head, or one for all
    mode: SlashMode = "cover"
    estimate_every: int = 0
    dense_fallback: bool = True
    min_length: int = 0
    methods: tuple[Method, ...] = ()  # where given, they attend in place of all but min_length


class LayerPlan(NamedTuple):
    """What one prefill call of one layer computed."""

    layer_idx: int
    stats: PlanStats  #: fields int64 [batch, query heads]


_DEFAULT = LayerSettings((DEFAULT_PATTERN,))
_SETTINGS = "_minference_settings"
_PLANS = "_minference_plans"


def settings_of(module: torch.nn.Module) -> LayerSettings:
    """Those of `configure`, or the default."""
    settings: LayerSettings = getattr(module, _SETTINGS, _DEFAULT)
    return settings


def plans_of(module: torch.nn.Module) -> list[LayerPlan] | None:
    """The list of `record_plans`, or None outside of it."""
    plans: list[LayerPlan] | None = getattr(module, _PLANS, None)
    return plans


def configure(
    model: PreTrainedModel,
    patterns: Patterns = DEFAULT_PATTERN,
    *,
    starting_layer: int = 0,
    min_length: int = 0,
    mode: SlashMode = "cover",
    estimate_every: int = 0,
    dense_fallback: bool = True,
) -> None:
    """Sets the patterns of a model's prefill, and switches the model to "minference".

    The settings belong to this model, not to its config: `save_pretrained` does not write them. A
    model that was never configured runs DEFAULT_PATTERN in all heads.

    Args:
        patterns: one for all heads, [layers][query heads] of them, a ModelPatterns, or the path or
            published name of a file that `ModelPatterns.load` reads. Kinds that need lists of
            indices (`vertical_slash_index`, `block_index`) cannot be set. A Method of
            `minference_ext.methods` may stand wherever a pattern does; `mode`, `estimate_every` and
            `dense_fallback` are then its own affair. Methods run prompt by prompt, and not under
            torch.compile. One that learns from prompts (`has_memory`) serves one model.
        starting_layer: layers before this one attend densely.
        min_length: with fewer keys than this, PyTorch's own attention runs. 0 leaves it to the cost
            model, which finds for each head where dense attention is cheaper.
        mode, estimate_every, dense_fallback: as in `minference_ext.sparse_attention`.

    Raises:
        ValueError: shape or kind of `patterns`, a file's content, a number out of range, a model
            without layers of causal attention, or one whose rotation a method cannot undo.
        FileNotFoundError: no such file or published name.
    """
    modules = _attention_modules(model)
    if not hasattr(model, "set_attn_implementation"):
        raise ValueError(
            f"model: {type(model).__name__} is not a model of Transformers; pass the one it wraps"
        )
    config = model.config
    if config.is_encoder_decoder:
        raise ValueError(f"model: {type(model).__name__} is an encoder-decoder; pass a decoder")
    text_config = config.get_text_config()
    if isinstance(patterns, PatternsMethod):
        patterns = patterns.model_patterns
    methods = _methods_per_layer(text_config, patterns)
    per_layer = (
        _per_layer(text_config, patterns)
        if methods is None
        else [(HeadPattern.dense(),)] * text_config.num_hidden_layers
    )
    _check_range("starting_layer", starting_layer, len(per_layer))
    _check_range("min_length", min_length, None)
    _check_range("estimate_every", estimate_every, None)
    if estimate_every % 64 != 0:
        raise ValueError(f"estimate_every is {estimate_every}; it must be a multiple of 64")
    if mode not in get_args(SlashMode):
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(get_args(SlashMode))}")
    for module, method in _rotated(modules, methods, starting_layer):
        check_rotation(module, method.name)
    for module in modules:
        layer_idx = int(module.layer_idx)
        heads = per_layer[layer_idx] if layer_idx >= starting_layer else (HeadPattern.dense(),)
        of_layer = methods[layer_idx] if methods and layer_idx >= starting_layer else ()
        layer = LayerSettings(heads, mode, estimate_every, dense_fallback, min_length, of_layer)
        setattr(module, _SETTINGS, layer)
        keep_rotation(module, any(method.needs_rotation for method in of_layer))
    # Vision and audio parts, which are not causal, keep what they have.
    parts = [name for name in config.sub_configs if getattr(config, name, None) is text_config]
    model.set_attn_implementation({parts[0]: NAME} if parts else NAME)


@contextmanager
def record_plans(model: PreTrainedModel) -> Iterator[list[LayerPlan]]:
    """Within it, the returned list grows by one entry per sparse call of a layer.

    Every such call estimates and plans twice: not for timing, and not under torch.compile. Methods,
    and calls for a right-padded batch, add one entry per batch row.
    """
    plans: list[LayerPlan] = []
    modules = _attention_modules(model)
    before = [plans_of(module) for module in modules]
    try:
        for module in modules:
            setattr(module, _PLANS, plans)
        yield plans
    finally:
        for module, outer in zip(modules, before, strict=True):
            setattr(module, _PLANS, outer)


def _attention_modules(model: torch.nn.Module) -> list[Any]:
    modules = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and getattr(module, "is_causal", False)
    ]
    if not modules:
        raise ValueError(
            f"model: {type(model).__name__} has no module with layer_idx and is_causal, by which "
            "Transformers' causal attention layers are known"
        )
    return modules


def _rotated(
    modules: Sequence[Any], methods: list[tuple[Method, ...]] | None, starting_layer: int
) -> Iterator[tuple[Any, Method]]:
    """Each module that runs methods which need its rotation, with the first of them."""
    for module in modules:
        if methods is None or module.layer_idx < starting_layer:
            continue
        needing = [method for method in methods[module.layer_idx] if method.needs_rotation]
        if needing:
            yield module, needing[0]


def _methods_per_layer(config: Any, patterns: Patterns) -> list[tuple[Method, ...]] | None:
    """Methods of each layer: one per query head, or one for all. None: patterns alone."""
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    if isinstance(patterns, Method):
        return [(patterns,)] * num_layers
    if not isinstance(patterns, Sequence) or isinstance(patterns, str):
        return None
    rows = [heads if isinstance(heads, Sequence) else (heads,) for heads in patterns]
    if not any(isinstance(head, Method) for heads in rows for head in heads):
        return None
    if [len(heads) for heads in rows] != [num_heads] * num_layers:
        raise ValueError(
            f"patterns has {len(rows)} layers with {sorted({len(heads) for heads in rows})} heads; "
            f"this model needs {num_layers} layers with {num_heads} each, or one for all"
        )
    return [
        tuple(_method_of(head, layer_idx, head_idx) for head_idx, head in enumerate(heads))
        for layer_idx, heads in enumerate(rows)
    ]


def _method_of(head: Any, layer_idx: int, head_idx: int) -> Method:
    if isinstance(head, Method):
        return head
    where = f"patterns, layer {layer_idx}, head {head_idx}"
    if not isinstance(head, HeadPattern):
        raise ValueError(f"{where}: found {head!r}; it must be a HeadPattern or a Method")
    try:
        return of_pattern(head)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _per_layer(config: Any, patterns: Patterns) -> list[tuple[HeadPattern, ...]]:
    """Patterns of each layer: one per query head, or one for all."""
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    if isinstance(patterns, HeadPattern):
        heads = ModelPatterns.uniform(patterns, 1, 1).layers[0]  # checks the kind
        return [heads] * num_layers
    if isinstance(patterns, str | os.PathLike):
        patterns = _load(patterns)
    elif not isinstance(patterns, ModelPatterns):
        patterns = ModelPatterns(cast("Sequence[Sequence[HeadPattern]]", patterns))
    if (patterns.num_layers, patterns.num_heads) != (num_layers, num_heads):
        raise ValueError(
            f"patterns has {patterns.num_layers} layers with {patterns.num_heads} heads; this "
            f"model needs {num_layers} layers with {num_heads} each, or one HeadPattern for all"
        )
    return list(patterns.layers)


def _load(source: str | os.PathLike[str]) -> ModelPatterns:
    try:
        return ModelPatterns.load(source)
    except FileNotFoundError as error:
        text = os.fspath(source)
        if text.partition("(")[0] not in by_name():
            raise
        raise ValueError(
            f"patterns is {text!r}, which is no file but a method: pass "
            f"minference_ext.methods.parse({text!r})"
        ) from error


def _check_range(name: str, found: int, most: int | None) -> None:
    if type(found) is not int or found < 0 or (most is not None and found > most):
        allowed = "a whole number >= 0" if most is None else f"0..{most}"
        raise ValueError(f"{name} is {found!r}; it must be {allowed}")
