"""The mask function of "minference": padding by slot of the cache, [query, key] for short calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

# Rows that vertical_slash estimates from; a shorter call gains nothing from a pattern.
MIN_QUERIES = 64


def attention_mask(**kwargs: Any) -> Tensor | None:
    """What Transformers passes to `attention` as its mask.

    Called with what Transformers gives every mask function, and for a static cache twice: with the
    user's mask, then with its own result.

    Returns:
        For fewer than MIN_QUERIES queries what PyTorch's attention takes: None or bool
        [batch, 1, q_length, kv_length]. Else None: every slot of the cache holds a key to attend;
        or bool [batch, kv_length]: which ones do.

    Raises:
        NotImplementedError: packed sequences, or any mask beyond causality, padding and window.
        ValueError: the mask does not reach up to the last query.
    """
    position = kwargs.get("cache_position")  # Transformers up to 5.3
    q_length = kwargs["q_length"] if position is None else len(position)
    if q_length < MIN_QUERIES:
        mask: Tensor | None = sdpa_mask(**kwargs)
        return mask
    return _mask_by_slot(**kwargs)


def _mask_by_slot(
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
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """`attention_mask` for a call that runs the patterns.

    Args:
        kv_length: slots of the cache, with a static cache also those not yet written.
        kv_offset: position of the first slot; a cache of a sliding window drops those before it.
        attention_mask: bool [batch, positions], False for padding; the user's or an earlier result.
        local_size: the sliding window; `attention` applies it.
    """
    if cache_position is not None:
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    assert q_length is not None
    is_compiling = torch.compiler.is_compiling()
    end = (q_offset if is_compiling else int(q_offset)) + q_length - kv_offset
    is_plain = mask_function is causal_mask_function
    if is_compiling:  # no data to tell by
        is_plain = local_size is None or local_size == getattr(config, "sliding_window", None)
    elif not is_plain:
        query = torch.arange(q_length, device=device) + int(q_offset)
        is_plain = _is_causal(mask_function, batch_size, query, kv_offset, local_size)
    if use_vmap or not is_plain:
        raise NotImplementedError(
            'attn_implementation="minference" supports causal masks with padding and sliding '
            "windows, not packed sequences (position_ids that start again), bidirectional "
            'attention or masks that a model adds; use "sdpa" for this call'
        )
    if attention_mask is None and not isinstance(end, Tensor) and end == kv_length:
        return None
    if attention_mask is None:
        valid = torch.ones((batch_size, kv_length), dtype=torch.bool, device=device)
    else:
        num_columns = attention_mask.shape[1]  # of positions, or of slots: our own result
        if not is_compiling and num_columns != kv_length and num_columns < kv_offset + end:
            raise ValueError(
                f"attention_mask covers {num_columns} positions; it must cover all "
                f"{kv_offset + end}, those in the cache included"
            )
        valid = _by_slot(attention_mask, kv_length, kv_offset)
    valid = valid & (torch.arange(kv_length, device=valid.device) < end)
    if is_compiling:
        return valid
    if end == kv_length and bool(valid.all()):
        return None
    if q_length < kv_length and not bool(valid[:, end - 1].any()):
        raise ValueError(
            "attention_mask ends with padding in every row of a chunk of the prompt, or of a "
            'prompt with a static cache; pad on the left (tokenizer.padding_side = "left")'
        )
    return valid


def _is_causal(
    mask_function: Any, batch_size: int, query: Tensor, first_key: int, window: int | None
) -> bool:
    """Whether every query, [q_length], attends its oldest key and none of the two beyond its keys.

    Those two are the key after its own and the one before its window.
    """
    row = torch.arange(batch_size, device=query.device)[:, None]
    query = query[None]
    is_attended = mask_function(row, 0, query[:, :-1], query[:, 1:])
    oldest = torch.full_like(query, first_key)
    if window is not None:
        oldest = oldest.maximum(query - window + 1)
        beyond = oldest > first_key
        is_attended = is_attended.any() or (mask_function(row, 0, query, oldest - 1) & beyond).any()
    return bool(mask_function(row, 0, query, oldest).all()) and not bool(is_attended.any())


def _by_slot(mask: Tensor, kv_length: int, kv_offset: int) -> Tensor:
    """bool [batch, kv_length] of a mask over positions; False where it ends early."""
    mask = mask.to(torch.bool)
    if mask.shape[1] > kv_length:
        mask = mask[:, kv_offset : kv_offset + kv_length]
    return torch.nn.functional.pad(mask, (0, kv_length - mask.shape[1]))
