"""Sparse prefill in Hugging Face Transformers, as the attention implementation "minference".

    import minference_ext.transformers  # registers the name
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="minference")
    minference_ext.transformers.configure(model, HeadPattern.vertical_slash(1000, 6096))

A call with 64 query rows or more is a prefill, or a chunk of one, and runs the patterns; shorter
ones, decoding above all, are dense and run PyTorch's own attention. Two functions are registered,
and both are needed: for a name without a mask function Transformers drops the mask of a padded
batch. Ours never makes it [query, key]: `None`, or bool [batch, kv_len] by slot of the cache.

While torch.compile traces, data cannot be read. A mask is then taken to be left-padded, with free
slots of a static cache behind it, and position_ids that pack several sequences go unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import causal_mask_function
except ImportError as error:
    raise ImportError(
        "minference_ext.transformers needs transformers 4.57 or later: "
        f"pip install 'transformers>=4.57' ({error})"
    ) from error

from .ops import SlashMode, plan_stats, sparse_attention
from .patterns import HeadPattern, PlanStats

NAME = "minference"
DEFAULT_PATTERN = HeadPattern.vertical_slash(1000, 6096)  # the largest sizes MInference searches

# Rows that vertical_slash estimates from; a shorter call gains nothing from a pattern.
_MIN_QUERIES = 64

# Arguments of the model that reach attention and do not change it. position_ids are already in the
# rotation of query and key; max_length_* only accompany cu_seq_lens_*, which are refused.
_WITHOUT_EFFECT = frozenset(
    (
        "cache_position",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    )
)


@dataclass(frozen=True)
class _Settings:
    """What `configure` leaves on an attention module."""

    patterns: tuple[HeadPattern, ...]  # one per query head, or one for all
    mode: SlashMode = "cover"
    estimate_every: int = 0
    dense_fallback: bool = True


class LayerPlan(NamedTuple):
    """What one prefill call of one layer computed."""

    layer_idx: int
    stats: PlanStats  #: fields int64 [batch, query heads]


_DEFAULT = _Settings((DEFAULT_PATTERN,))
_SETTINGS = "_minference_settings"
_PLANS = "_minference_plans"


def register() -> None:
    """Registers "minference" with Transformers. Importing this module does."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


def configure(
    model: PreTrainedModel,
    patterns: HeadPattern | Sequence[Sequence[HeadPattern]] = DEFAULT_PATTERN,
    *,
    mode: SlashMode = "cover",
    estimate_every: int = 0,
    dense_fallback: bool = True,
) -> None:
    """Sets the patterns of a model's prefill, and switches the model to "minference".

    The settings belong to this model, not to its config: `save_pretrained` does not write them. A
    model that was never configured runs DEFAULT_PATTERN in all heads.

    Args:
        patterns: one for all heads, or [layers][query heads]. Kinds that need lists of indices
            (`vertical_slash_index`, `block_index`) cannot be set.
        mode, estimate_every, dense_fallback: as in `minference_ext.sparse_attention`.

    Raises:
        ValueError: shape or kind of `patterns`, or a model without layers of causal attention.
    """
    modules = _attention_modules(model)
    per_layer = _per_layer(model, patterns)
    for module in modules:
        layer = _Settings(per_layer[int(module.layer_idx)], mode, estimate_every, dense_fallback)
        setattr(module, _SETTINGS, layer)
    model.set_attn_implementation(NAME)


@contextmanager
def record_plans(model: PreTrainedModel) -> Iterator[list[LayerPlan]]:
    """Within it, the returned list grows by one entry per sparse call of a layer.

    Every such call estimates and plans twice: not for timing, and not under torch.compile. Calls
    for a right-padded batch add one entry per batch row.
    """
    plans: list[LayerPlan] = []
    modules = _attention_modules(model)
    try:
        for module in modules:
            setattr(module, _PLANS, plans)
        yield plans
    finally:
        for module in modules:
            delattr(module, _PLANS)


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


def _per_layer(
    model: PreTrainedModel, patterns: HeadPattern | Sequence[Sequence[HeadPattern]]
) -> list[tuple[HeadPattern, ...]]:
    """Patterns of each layer: one per query head, or one for all."""
    config: Any = model.config.get_text_config()
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    per_layer: list[tuple[HeadPattern, ...]]
    if isinstance(patterns, HeadPattern):
        per_layer = [(patterns,)] * num_layers
    else:
        per_layer = [tuple(heads) for heads in patterns]
        lengths = [len(heads) for heads in per_layer]
        if lengths != [num_heads] * num_layers:
            raise ValueError(
                f"patterns: {len(lengths)} layers with {sorted(set(lengths))} heads; this model "
                f"needs one HeadPattern, or {num_layers} layers with {num_heads} each"
            )
    for heads in per_layer:
        for pattern in heads:
            if not isinstance(pattern, HeadPattern):
                raise ValueError(f"patterns: {pattern!r} is not a HeadPattern")
            if pattern.kind in ("vertical_slash_index", "block_index"):
                raise ValueError(
                    f"patterns: {pattern.kind} takes lists of indices, which belong to one prompt; "
                    "call minference_ext.sparse_attention for it"
                )
    return per_layer


# ---- The mask ------------------------------------------------------------------------------------


def attention_mask(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Any,
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    cache_position: Tensor | None = None,
    device: torch.device | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """What Transformers passes to `attention` as its mask.

    Transformers may apply it twice: to the user's mask, then to its own result.

    Args:
        kv_length: slots of the cache, with a static cache also those not yet written.
        attention_mask: bool [batch, positions], False for padding; the user's or an earlier result.

    Returns:
        None: every slot holds a key to attend. Else bool [batch, kv_length]: which ones do.

    Raises:
        NotImplementedError: a sliding window shorter than kv_length, packed sequences, or any mask
            beyond causality and padding.
        ValueError: the mask does not reach up to the last query.
    """
    if cache_position is not None:  # Transformers up to 5.3
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    assert q_length is not None
    is_compiling = torch.compiler.is_compiling()
    _check_window(local_size, kv_length)
    end = (q_offset if is_compiling else int(q_offset)) + q_length - kv_offset
    is_plain = mask_function is causal_mask_function or is_compiling  # no data to tell by
    if not is_plain:
        query = torch.arange(q_length, device=device) + int(q_offset)
        is_plain = _is_causal(mask_function, batch_size, query, kv_offset)
    if use_vmap or not is_plain:
        raise NotImplementedError(
            'attn_implementation="minference" supports causal masks with padding, not packed '
            "sequences (position_ids that start again), bidirectional attention or masks that a "
            'model adds; use "sdpa" for this call'
        )
    if attention_mask is None and not isinstance(end, Tensor) and end == kv_length:
        return None
    if attention_mask is None:
        valid = torch.ones((batch_size, kv_length), dtype=torch.bool, device=device)
    else:
        valid = _by_slot(attention_mask, kv_length, kv_offset)
        if not is_compiling and attention_mask.shape[1] < end:
            raise ValueError(
                f"attention_mask covers {attention_mask.shape[1]} positions; it must cover all "
                f"{end}, those in the cache included"
            )
    valid = valid & (torch.arange(kv_length, device=valid.device) < end)
    if is_compiling:
        return valid
    if end == kv_length and bool(valid.all()):
        return None
    if 1 < q_length < kv_length and not bool(valid[:, end - 1].any()):
        raise ValueError(
            "attention_mask ends with padding in every row of a chunk of the prompt; pad prompts "
            'on the left (tokenizer.padding_side = "left")'
        )
    return valid


def _is_causal(mask_function: Any, batch_size: int, query: Tensor, first_key: int) -> bool:
    """Whether every query, [q_length], attends the first key and none the key after its own."""
    row = torch.arange(batch_size, device=query.device)[:, None]
    query = query[None]
    attends_first = mask_function(row, 0, query, torch.full_like(query, first_key))
    attends_next = mask_function(row, 0, query[:, :-1], query[:, 1:])
    return bool(attends_first.all()) and not bool(attends_next.any())


def _by_slot(mask: Tensor, kv_length: int, kv_offset: int) -> Tensor:
    """bool [batch, kv_length] of a mask over positions; False where it ends early."""
    mask = mask.to(torch.bool)
    if mask.shape[1] > kv_length:
        mask = mask[:, kv_offset : kv_offset + kv_length]
    return torch.nn.functional.pad(mask, (0, kv_length - mask.shape[1]))


def _check_window(window: int | None, kv_len: int) -> None:
    if window is not None and window < kv_len:
        raise NotImplementedError(
            f"sliding_window is {window} and there are {kv_len} keys: "
            'attn_implementation="minference" does not support sliding windows yet, unless all '
            "keys fit in the window"
        )


# ---- Attention -----------------------------------------------------------------------------------


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers calls it.

    Args:
        query: [B, H, q_len, D], rotated. key, value: [B, H_kv, kv_len, D], all of the cache.
        attention_mask: None, or bool [B, kv_len] as `attention_mask` returns it.

    Returns:
        [B, q_len, H, D], contiguous; undefined (finite) at queries that are padding. No weights.

    Raises:
        NotImplementedError: an argument that this implementation does not support, by name.
        ValueError: a mask that is neither, or that has holes.
    """
    _refuse_unsupported(module, dropout, is_causal, kwargs)
    q_len, kv_len = query.shape[2], key.shape[2]
    _check_window(sliding_window, kv_len)
    if attention_mask is not None and (
        attention_mask.dim() != 2 or attention_mask.shape[1] != kv_len
    ):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; "
            f'attn_implementation="minference" takes [batch, {kv_len}], True or 1 for tokens and '
            'False or 0 for padding. For masks [batch, heads, query, key] use "sdpa"'
        )
    if attention_mask is not None:
        attention_mask = attention_mask.to(torch.bool)
    if q_len < _MIN_QUERIES:
        mask = _pairwise(attention_mask, q_len, kv_len, query.device)
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
        return out, None
    layer = _Layer(module, scaling)
    if attention_mask is None:
        out = layer.attend(query, key, value)
    elif torch.compiler.is_compiling():
        out = layer.attend(query, *_right_aligned(key, value, attention_mask, q_len))
    else:
        out = _attend_padded(layer, query, key, value, attention_mask)
    return out.transpose(1, 2), None


def _refuse_unsupported(
    module: torch.nn.Module, dropout: float, is_causal: bool | None, kwargs: dict[str, Any]
) -> None:
    if dropout > 0.0:
        _refuse("dropout", dropout, "set attention_dropout = 0 in the model's config")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    if not is_causal:
        _refuse("is_causal", False, "there is causal attention only")
    for name, value in kwargs.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            found = f"a {type(value).__name__}" if isinstance(value, Tensor) else value
            _refuse(name, found, "ignoring it could change the result")


def _refuse(name: str, found: object, reason: str) -> None:
    raise NotImplementedError(
        f'{name} is {found}: attn_implementation="minference" does not support that; {reason}'
    )


class _Layer:
    """sparse_attention with the settings of one layer."""

    def __init__(self, module: torch.nn.Module, scaling: float | None) -> None:
        self._settings: _Settings = getattr(module, _SETTINGS, _DEFAULT)
        self._plans: list[LayerPlan] | None = getattr(module, _PLANS, None)
        self._layer_idx = getattr(module, "layer_idx", None)
        self._scaling = scaling

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, first_valid_key: Tensor | None = None
    ) -> Tensor:
        """[B, H, q_len, D] over memory contiguous as [B, q_len, H, D]."""
        patterns = self._settings.patterns
        if len(patterns) == 1:
            patterns = patterns * query.shape[1]
        options: dict[str, Any] = {
            "mode": self._settings.mode,
            "estimate_every": self._settings.estimate_every,
            "dense_fallback": self._settings.dense_fallback,
            "softmax_scale": self._scaling,
            "first_valid_key": first_valid_key,
        }
        if self._plans is not None and self._layer_idx is not None:
            stats = plan_stats(query, key, patterns, **options)
            self._plans.append(LayerPlan(self._layer_idx, stats))
        out, _ = sparse_attention(query, key, value, patterns, **options)
        return out


def _pairwise(mask: Tensor | None, q_len: int, kv_len: int, device: torch.device) -> Tensor | None:
    """The mask PyTorch's attention needs for a few queries: bool [B or 1, 1, q_len, kv_len].

    None where its own causal flag says the same.
    """
    if q_len == 1:
        return None if mask is None else mask[:, None, None, :]
    if mask is None and q_len == kv_len:
        return None
    slot = torch.arange(kv_len, device=device)
    end: int | Tensor = kv_len
    if mask is not None and q_len < kv_len:  # free slots of a static cache lie behind the queries
        end = _ends(mask).amax()
    position = (torch.arange(q_len, device=device) + (end - q_len))[:, None]  # [q_len, 1]
    attended = (slot <= position)[None, None]
    if mask is None:
        return attended
    # Queries that are padding attend themselves: without a key they would be NaN.
    return attended & mask[:, None, None, :] | (slot == position)


def _ends(mask: Tensor) -> Tensor:
    """One behind the last valid slot of each row, [B]; 0 if there is none."""
    slot = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, slot + 1, 0).amax(1)


def _begins(mask: Tensor) -> Tensor:
    """The first valid slot of each row, [B]; kv_len if there is none."""
    slot = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, slot, mask.shape[1]).amin(1)


def _right_aligned(
    key: Tensor, value: Tensor, mask: Tensor, q_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Key, value and first_valid_key of a left-padded batch, without reading data on the host.

    Free slots behind the keys move to the front, where first_valid_key hides them.
    """
    kv_len = key.shape[2]
    begins = _begins(mask)
    if q_len < kv_len:
        num_free = kv_len - _ends(mask).amax()
        source = (torch.arange(kv_len, device=key.device) - num_free) % kv_len
        key, value = key.index_select(2, source), value.index_select(2, source)
        begins = begins + num_free
    return key, value, begins.clamp(max=kv_len).to(torch.int32)


def _attend_padded(
    layer: _Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """Attention of a batch padded on the left, or of a whole prompt also on the right."""
    q_len, kv_len = query.shape[2], key.shape[2]
    begins = _begins(mask)
    rows = torch.stack((begins, _ends(mask), mask.sum(1)), dim=1).tolist()
    for row, (begin, end, count) in enumerate(rows):
        if count not in (0, end - begin):
            raise ValueError(
                f"attention_mask of row {row} has padding between slots {begin} and {end - 1}; "
                "a prompt must be in one piece"
            )
    # Slots behind the last query are free ones of a static cache.
    last = kv_len if q_len == kv_len else max(end for _, end, _ in rows)
    if all(end == last or count == 0 for _, end, count in rows):
        key, value = key[:, :, :last], value[:, :, :last]
        return layer.attend(query, key, value, begins.clamp(max=last).to(torch.int32))
    if q_len != kv_len:
        raise ValueError(
            "attention_mask is padded on the right within a chunk of the prompt; pad prompts on "
            'the left (tokenizer.padding_side = "left")'
        )
    # Padding on the right would enter the estimate of the lines, so each row is cut to its tokens.
    batch, heads, _, head_dim = query.shape
    out = query.new_zeros((batch, q_len, heads, head_dim)).transpose(1, 2)
    for row, (begin, end, count) in enumerate(rows):
        if count > 0:
            cut = (slice(row, row + 1), slice(None), slice(begin, end))
            out[cut] = layer.attend(query[cut], key[cut], value[cut])
    return out


register()
