"""The attention function of "minference": sparse for a prefill, PyTorch's own for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from minference_ext.methods import Layer, Rotation, attend_heads, stats_of_heads
from minference_ext.ops import plan_stats, sparse_attention
from minference_ext.patterns import HeadPattern

from .masks import MIN_QUERIES
from .rotation import cut, rotation_of
from .settings import LayerPlan, plans_of, settings_of

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
        attention_mask: as the mask function returns it: None, bool [B, kv_len], or for a short
            call [B, 1, q_len, kv_len].
        sliding_window: keys that a query attends up to its own, or None. Shorter than kv_len, it is
            what every head attends, whatever its pattern.

    Returns:
        [B, q_len, H, D], contiguous; undefined (finite) at queries that are padding. No weights.

    Raises:
        NotImplementedError: an argument that this implementation does not support, by name.
        ValueError: a mask that is neither, or that has holes.
    """
    refuse_unsupported(module, dropout, is_causal, kwargs)
    if query.dtype == torch.float8_e4m3fn:
        _refuse("query.dtype", query.dtype, "call minference_ext.sparse_attention, with its scales")
    q_len, kv_len = query.shape[2], key.shape[2]
    window = window_of(module, sliding_window, kv_len)
    is_short = q_len < MIN_QUERIES
    if attention_mask is not None and (
        attention_mask.dim() != (4 if is_short else 2) or attention_mask.shape[-1] != kv_len
    ):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; "
            f'attn_implementation="minference" takes [batch, {kv_len}], True or 1 for tokens and '
            f"False or 0 for padding; [batch, heads, query, key] for fewer than {MIN_QUERIES} "
            'queries only, else use "sdpa"'
        )
    if is_short:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
        return out, None
    if attention_mask is not None:
        attention_mask = attention_mask.to(torch.bool)
    if kv_len < settings_of(module).min_length:
        mask = _pairwise(attention_mask, q_len, kv_len, window, query.device)
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
        return out, None
    layer = _Layer(module, scaling, window)
    if attention_mask is None:
        out = layer.attend(query, key, value, rotation=layer.rotation)
    elif torch.compiler.is_compiling():
        out = layer.attend(query, *_right_aligned(key, value, attention_mask, q_len))
    else:
        out = _attend_padded(layer, query, key, value, attention_mask)
    return out.transpose(1, 2), None


def window_of(module: Any, sliding_window: int | None, kv_len: int) -> int | None:
    """The sliding window of an attention module, or None where it hides no key.

    Args:
        sliding_window: as the module gives it to its attention function; None: look into its
            config, where alone some models say it.
        kv_len: keys of the call.
    """
    if sliding_window is None:
        config = module.config
        layer_types = getattr(config, "layer_types", None)
        if layer_types is not None and layer_types[module.layer_idx] == "sliding_attention":
            sliding_window = config.sliding_window
    return sliding_window if sliding_window is not None and sliding_window < kv_len else None


def refuse_unsupported(
    module: torch.nn.Module, dropout: float, is_causal: bool | None, kwargs: dict[str, Any]
) -> None:
    """Refuses what would be another result than causal attention without dropout.

    Args:
        dropout, is_causal, kwargs: as Transformers calls attention functions; of `kwargs` None and
            False ask for nothing.

    Raises:
        NotImplementedError: the first such argument, by name.
    """
    if dropout > 0.0:
        _refuse("dropout", dropout, "set attention_dropout = 0 in the model's config")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    if not is_causal:
        _refuse(
            "is_causal",
            False,
            "there is causal attention only. A model with a vision part takes it for its text "
            'alone: set_attn_implementation({"text_config": "minference"})',
        )
    for name, value in kwargs.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            found = f"a {type(value).__name__}" if isinstance(value, Tensor) else value
            _refuse(name, found, "ignoring it could change the result")


def _refuse(name: str, found: object, reason: str) -> None:
    raise NotImplementedError(
        f'{name} is {found}: attn_implementation="minference" does not support that; {reason}'
    )


class _Layer:
    """sparse_attention with the settings of one layer, or within its sliding window."""

    def __init__(self, module: torch.nn.Module, scaling: float | None, window: int | None) -> None:
        settings = settings_of(module)
        self._patterns = settings.patterns
        if window is not None:
            self._patterns = (HeadPattern.a_shape(0, window),)
        self._options: dict[str, Any] = {
            "mode": settings.mode,
            "estimate_every": settings.estimate_every,
            "dense_fallback": settings.dense_fallback,
            "softmax_scale": scaling,
        }
        self._methods = settings.methods if window is None else ()
        self.rotation = rotation_of(module)
        self._plans = plans_of(module)
        self._layer_idx = getattr(module, "layer_idx", None)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first_valid_key: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """[B, H, q_len, D] over memory contiguous as [B, q_len, H, D]; rotation is that of query,
        where a method needs it."""
        if self._methods:
            return self._attend_by_methods(query, key, value, first_valid_key, rotation)
        patterns = self._patterns
        if len(patterns) == 1:
            patterns = patterns * query.shape[1]
        options = {**self._options, "first_valid_key": first_valid_key}
        if self._plans is not None and self._layer_idx is not None:
            stats = plan_stats(query, key, patterns, **options)
            self._plans.append(LayerPlan(self._layer_idx, stats))
        out, _ = sparse_attention(query, key, value, patterns, **options)
        return out

    def _attend_by_methods(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first_valid_key: Tensor | None,
        rotation: Rotation | None,
    ) -> Tensor:
        """Each prompt of the batch on its own, without its padding."""
        if torch.compiler.is_compiling():
            _refuse("torch.compile", True, "methods run eagerly; compile with patterns alone")
        batch, heads, q_len, head_dim = query.shape
        kv_len = key.shape[2]
        begins = [0] * batch if first_valid_key is None else first_valid_key.tolist()
        if begins == [0]:  # all there is, and no second output for it
            return self._attend_prompt(query, key, value, cut(rotation, 0, 0, q_len))
        out = query.new_zeros((batch, q_len, heads, head_dim)).transpose(1, 2)
        for row, begin in enumerate(begins):
            first_query = max(0, begin - (kv_len - q_len))
            if first_query == q_len:
                continue
            keys = (slice(row, row + 1), slice(None), slice(begin, kv_len))
            queries = (slice(row, row + 1), slice(None), slice(first_query, q_len))
            of_row = cut(rotation, row, first_query, q_len)
            out[queries] = self._attend_prompt(query[queries], key[keys], value[keys], of_row)
        return out

    def _attend_prompt(
        self, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation | None
    ) -> Tensor:
        layer = Layer(
            query,
            key,
            value,
            layer_idx=self._layer_idx or 0,
            softmax_scale=self._options["softmax_scale"],
            rotation=rotation,
        )
        if self._plans is not None and self._layer_idx is not None:
            self._plans.append(LayerPlan(self._layer_idx, stats_of_heads(self._methods, layer)))
        return attend_heads(self._methods, layer)[0]


def _pairwise(
    mask: Tensor | None, q_len: int, kv_len: int, window: int | None, device: torch.device
) -> Tensor | None:
    """The mask PyTorch's attention needs for a prefill: bool [B or 1, 1, q_len, kv_len].

    None where its own causal flag says the same.
    """
    if window is None and mask is None and q_len == kv_len:
        return None
    slot = torch.arange(kv_len, device=device)
    end: int | Tensor = kv_len
    if mask is not None and q_len < kv_len:  # free slots of a static cache lie behind the queries
        end = _ends(mask).amax()
    position = (torch.arange(q_len, device=device) + (end - q_len))[:, None]  # [q_len, 1]
    attended = slot <= position
    if window is not None:
        attended &= slot > position - window
    if mask is None:
        return attended[None, None]
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
        begins = begins.clamp(max=last).to(torch.int32)
        return layer.attend(query, key, value, begins, layer.rotation)
    if q_len != kv_len:
        raise ValueError(
            "attention_mask is padded on the right within a chunk of the prompt, or with a static "
            'cache; pad prompts on the left (tokenizer.padding_side = "left")'
        )
    # Padding on the right would enter the estimate of the lines, so each row is cut to its tokens.
    batch, heads, _, head_dim = query.shape
    out = query.new_zeros((batch, q_len, heads, head_dim)).transpose(1, 2)
    for row, (begin, end, count) in enumerate(rows):
        if count > 0:
            of_row = (slice(row, row + 1), slice(None), slice(begin, end))
            rotation = cut(layer.rotation, row, begin, end)
            out[of_row] = layer.attend(query[of_row], key[of_row], value[of_row], None, rotation)
    return out
