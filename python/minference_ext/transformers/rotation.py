"""cos and sin of RoPE for methods that turn queries and keys back.

Attention functions do not get them. The attention module does, so hooks keep them on it during a
call; and because models differ in what they rotate and how, `check_rotation` tries out each module
before a method may rely on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from minference_ext.methods import Rotation

_ROTATION = "_minference_rotation"
_HOOKS = "_minference_rotation_hooks"
_SEEN = "_minference_seen"
_PROBE = "minference_rotation_probe"
_TOLERANCE = 0.03  # of the largest value; bfloat16 rounds by 0.004 several times over


def rotation_of(module: torch.nn.Module) -> Rotation | None:
    """cos and sin of the call at hand, [1 or batch, q_len, rotary_dim], if a method needs them."""
    rotation: Rotation | None = getattr(module, _ROTATION, None)
    return rotation


def keep_rotation(module: torch.nn.Module, is_needed: bool) -> None:
    """Makes `rotation_of` know, or no longer know, what the module is called with."""
    for hook in getattr(module, _HOOKS, ()):
        hook.remove()
    hooks: tuple[Any, ...] = ()
    if is_needed:
        hooks = (
            module.register_forward_pre_hook(_keep, with_kwargs=True),
            module.register_forward_hook(_drop, always_call=True),
        )
    setattr(module, _HOOKS, hooks)


# Hooks at module level can be pickled, as a model with them is.
def _keep(module: torch.nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
    cos_and_sin = kwargs.get("position_embeddings")
    if cos_and_sin is not None:
        cos, sin = cos_and_sin
        setattr(module, _ROTATION, Rotation(cos, sin))


def _drop(module: torch.nn.Module, *_: Any) -> None:
    setattr(module, _ROTATION, None)


def cut(rotation: Rotation | None, row: int, begin: int, end: int) -> Rotation | None:
    """That of the queries begin .. end of one prompt of the batch, [end - begin, rotary_dim]; of
    what is cut already, a part."""
    if rotation is None:
        return None
    of_row = (rotation.cos, rotation.sin)
    if rotation.cos.dim() == 3:
        row = row if rotation.cos.shape[0] > 1 else 0
        of_row = (rotation.cos[row], rotation.sin[row])
    return Rotation(*(table[begin:end] for table in of_row))


def check_rotation(module: Any, method: str) -> None:
    """Raises ValueError unless the module rotates q and k as `Rotation` says.

    Runs it on a few random rows, without rotation and with one. That finds pairs that are
    interleaved, one table per axis of an image, a part that is not the first, and layers without
    RoPE, whatever the model is called.
    """
    where = f"{method} turns queries and keys back, which layer {module.layer_idx}"
    config = module.config
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if "mrope_section" in (rope or {}):
        raise ValueError(
            f"{where} does not allow: {type(module).__name__} rotates by several axes "
            "(mrope_section), of which a prompt has no single one"
        )
    head_dim = getattr(module, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    width = int(head_dim * _rotated_part(config, rope)) // 2 * 2
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand((1, 4, width // 2), generator=generator) * 6
    angle = torch.cat((angle, angle), dim=-1)
    hidden = torch.randn((1, 4, config.hidden_size), generator=generator)
    try:
        plain = _queries_and_keys(module, hidden, torch.zeros_like(angle))
        rotated = _queries_and_keys(module, hidden, angle)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} does not allow: {type(module).__name__} takes no cos and sin of {width} "
            f"elements ({error})"
        ) from error
    for before, after in zip(plain, rotated, strict=True):
        first, second = before[..., :width].chunk(2, dim=-1)
        turned = before[..., :width] * angle.cos() + torch.cat((-second, first), -1) * angle.sin()
        expected = torch.cat((turned, before[..., width:]), dim=-1)
        if float((after - expected).abs().max()) > _TOLERANCE * float(expected.abs().max()):
            raise ValueError(
                f"{where} does not allow: {type(module).__name__} does not rotate element n of a "
                "head's first elements with element n + rotary_dim / 2"
            )


def _rotated_part(config: Any, rope: Any) -> float:
    """The share of a head's elements that are rotated."""
    for settings in (rope or {}, config.to_dict()):
        if settings.get("partial_rotary_factor") is not None:
            return float(settings["partial_rotary_factor"])
    return 1.0


def _queries_and_keys(module: Any, hidden: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """q and k that the module would attend with, float32 on the CPU."""
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    like: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
    before = module.config._attn_implementation
    setattr(module, _SEEN, None)
    AttentionInterface.register(_PROBE, _see)
    try:
        module.config._attn_implementation = _PROBE
        with torch.no_grad():
            module(
                hidden_states=hidden.to(**like),
                position_embeddings=(angle.cos().to(**like), angle.sin().to(**like)),
                attention_mask=None,
            )
        query, key = getattr(module, _SEEN)
    finally:
        module.config._attn_implementation = before
        delattr(module, _SEEN)
    return query.float().cpu(), key.float().cpu()


def _see(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """An attention function that only remembers what it is called with."""
    setattr(module, _SEEN, (query, key))
    batch, heads, q_len = query.shape[:3]
    return value.new_zeros((batch, q_len, heads, value.shape[-1])), None
