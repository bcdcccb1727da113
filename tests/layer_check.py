"""How a method is held to an oracle: a random layer, and the pairs that it has to attend."""

from __future__ import annotations

import torch
from minference_ext.methods import Layer, Method, Rotation
from torch import Tensor

from tests import reference
from tests.check import compare, rounding_term


def random_layer(
    q_len: int,
    kv_len: int | None = None,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layer_idx: int = 0,
    softmax_scale: float | None = None,
    rotation: Rotation | None = None,
) -> Layer:
    """q, k and v of one prompt, normal numbers, as views into [1, length, heads, head_dim]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(num_heads: int, length: int) -> Tensor:
        values = torch.randn(1, length, num_heads, head_dim, generator=generator)
        return values.to(dtype).transpose(1, 2)

    kv_len = q_len if kv_len is None else kv_len
    return Layer(
        normal(heads, q_len),
        normal(kv_heads, kv_len),
        normal(kv_heads, kv_len),
        layer_idx=layer_idx,
        softmax_scale=softmax_scale,
        rotation=rotation,
    )


def kv_head(layer: Layer, head: int) -> int:
    return head // (layer.num_heads // layer.k.shape[1])


def check_layer(method: Method, layer: Layer, mask: Tensor) -> None:
    """Attends exactly `mask`, bool [H, q_len, kv_len], and `stats` says so.

    Errors may be twice those of plain PyTorch in the same dtype, as in check.py.
    """
    out, lse = method.attend(layer)
    assert out.dtype == layer.q.dtype
    assert lse.dtype == torch.float32
    expected, plain = [], []
    for head, pairs in enumerate(mask):
        kv = kv_head(layer, head)
        data = (layer.q[0, head], layer.k[0, kv], layer.v[0, kv], pairs, layer.scale)
        expected.append(reference.attention(*data))
        plain.append(reference.attention_low_precision(*data))
    for name, found, index in (("out", out, 0), ("lse", lse, 1)):
        want = torch.stack([both[index] for both in expected])[None]
        baseline = torch.stack([both[index] for both in plain])[None]
        term = rounding_term(found.dtype, want) + (1e-6 if name == "lse" else 0.0)
        compare(f"{method}: {name}", found, want, baseline, term)
    stats = method.stats(layer)
    assert stats.attended_pairs.tolist() == [mask.sum((1, 2)).tolist()]
    q_len, kv_len = mask.shape[1:]
    causal_pairs = q_len * (kv_len - q_len) + q_len * (q_len + 1) // 2
    assert stats.causal_pairs.tolist() == [[causal_pairs] * layer.num_heads]
    assert (stats.computed_pairs >= stats.attended_pairs).all()
