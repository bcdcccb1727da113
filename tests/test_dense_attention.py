"""dense_attention against float64, and what every op shares: memory layouts, sizes, outputs."""

from __future__ import annotations

import math

import minference_ext
import pytest
import torch
from torch import Tensor

from tests import cases, check
from tests.cases import BF16, Case
from tests.check import Arguments
from tests.reference import BlockSparse, Dense, Lines, VerticalSlash


@pytest.mark.parametrize("case", cases.DENSE, ids=str)
def test_values(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize("case", [c for c in cases.DENSE if c.seq_kv < 4000], ids=str)
def test_pairs(case: Case, device: str) -> None:
    check.check_attended(case, device)


def test_one_key_gives_its_value(device: str) -> None:
    """Also more than 65,535 sequences and heads in one call: a limit of CUDA grids."""
    q, k, v = (torch.randn(70_000, 1, 1, 8).to(device) for _ in range(3))
    out, lse = minference_ext.dense_attention(q, k, v)
    assert torch.allclose(out, v, atol=1e-6)
    assert torch.allclose(lse, (q * k).sum(-1) / math.sqrt(8), atol=1e-5)


def far_apart(values: Tensor, axis: int) -> Tensor:
    """A copy whose elements along `axis` lie so far apart that the last offset passes 2^31.

    The buffer takes 4 GiB of addresses. Nothing fills it, so only the pages that hold elements
    become memory: some hundred KiB.
    """
    step = 2**31 // (values.shape[axis] - 1) + 64
    strides = list(torch.empty(values.shape, device="meta").stride())
    strides[axis] = step
    length = 1 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    assert length > 2**31
    buffer = torch.empty(length, dtype=values.dtype, device=values.device)
    return buffer.as_strided(values.shape, strides).copy_(values)


@pytest.mark.parametrize("axis", [1, 2], ids=["heads", "tokens"])
@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_offsets_past_31_bits(name: str, axis: int, device: str) -> None:
    """With a head of each way to read keys: in order, gathered, estimated, pooled."""
    heads = (Dense(), Lines((0, 70, 129), (0,)), VerticalSlash(30, 50), BlockSparse(1))
    case = Case("corner", "", "", heads, q_len=130, num_heads_q=4, dtype=BF16, covers_all=None)
    solution = check.solve(case)
    tensors = {
        "q": solution.q.to(device),
        "k": solution.k.to(device),
        "v": solution.v.to(device),
        "out": torch.full(solution.q.shape, math.nan, dtype=BF16, device=device),
    }
    tensors[name] = far_apart(tensors[name], axis)
    q, k, v, out = tensors.values()
    result = check.run(case, Arguments(q, k, v, {"out": out}))
    check.check_solution(f"{name} along axis {axis}", case, solution, *result)


def test_memory_beside_the_outputs_is_left_alone(device: str) -> None:
    q, k, v = (torch.randn(2, 3, 70, 24).to(device) for _ in range(3))
    wide_out = torch.full((2, 75, 3, 40), 7.0, device=device)
    wide_lse = torch.full((2, 3, 80), 7.0, device=device)
    out = wide_out[:, 2:72, :, 8:32].transpose(1, 2)
    lse = wide_lse[:, :, 5:75]
    minference_ext.dense_attention(q, k, v, out=out, lse=lse)
    expected = minference_ext.dense_attention(q, k, v)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    out.fill_(7.0)
    lse.fill_(7.0)
    assert wide_out.eq(7).all()
    assert wide_lse.eq(7).all()


def test_inputs_are_left_alone(device: str) -> None:
    inputs = [torch.randn(2, 3, 70, 24).to(device) for _ in range(3)]
    copies = [t.clone() for t in inputs]
    minference_ext.dense_attention(*inputs)
    assert all(torch.equal(t, copy) for t, copy in zip(inputs, copies, strict=True))
