"""a_shape_attention and tri_shape_attention against float64."""

from __future__ import annotations

import minference_ext
import pytest
import torch

from tests import cases, check
from tests.cases import Case


@pytest.mark.parametrize("case", cases.STREAMING, ids=str)
def test_values(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize("case", [c for c in cases.STREAMING if c.seq_kv < 4000], ids=str)
def test_pairs(case: Case, device: str) -> None:
    check.check_attended(case, device)


@pytest.mark.parametrize("begin", [0, 1, 63, 64, 100, 250])
def test_position_decides_not_the_chunk(begin: int, device: str) -> None:
    """A window belongs to a position: queries from anywhere in the prompt give the same rows."""
    q, k, v = (torch.randn(1, 2, 300, 64).to(device) for _ in range(3))
    whole, whole_lse = minference_ext.a_shape_attention(q, k, v, 5, 70)
    part, part_lse = minference_ext.a_shape_attention(q[:, :, begin:], k, v, 5, 70)
    assert torch.allclose(part, whole[:, :, begin:], atol=1e-5)
    assert torch.allclose(part_lse, whole_lse[:, :, begin:], atol=1e-5)


def test_tri_shape_without_last_rows_is_a_shape(device: str) -> None:
    q, k, v = (torch.randn(1, 2, 300, 64).to(device) for _ in range(3))
    tri = minference_ext.tri_shape_attention(q, k, v, 5, 70, 0)
    a = minference_ext.a_shape_attention(q, k, v, 5, 70)
    assert torch.allclose(tri[0], a[0], atol=1e-5)
    assert torch.allclose(tri[1], a[1], atol=1e-5)


def test_sizes_beyond_every_integer_of_32_bits(device: str) -> None:
    q, k, v = (torch.randn(1, 1, 200, 64).to(device) for _ in range(3))
    huge = 2**40
    dense = minference_ext.dense_attention(q, k, v)
    for result in (
        minference_ext.a_shape_attention(q, k, v, huge, 0),
        minference_ext.a_shape_attention(q, k, v, 0, huge),
        minference_ext.tri_shape_attention(q, k, v, 0, 0, huge),
    ):
        assert torch.allclose(result[0], dense[0], atol=1e-5)
        assert torch.allclose(result[1], dense[1], atol=1e-5)
