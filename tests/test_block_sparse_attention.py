"""block_sparse_attention and block_sparse_attention_with_index against float64."""

from __future__ import annotations

import minference_ext
import pytest
import torch

from tests import cases, check, reference
from tests.cases import Case
from tests.reference import Blocks, BlockSparse


@pytest.mark.parametrize("case", cases.BLOCK_SPARSE, ids=str)
def test_values(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize("case", [c for c in cases.BLOCK_SPARSE if not c.is_estimated], ids=str)
def test_pairs(case: Case, device: str) -> None:
    check.check_attended(case, device)


def test_given_blocks_equal_estimated_ones(device: str) -> None:
    """The lists the oracle ranks, handed in, give what the op ranks for itself."""
    case = Case("regular", "", "", (BlockSparse(2),), q_len=450, num_heads_q=4, seed=7)
    case = case.on(device)
    solution = check.solve(case)
    lists = [
        [reference.block_top_k(solution.q[0, h], solution.k[0, h // 2], 2)[0] for h in range(4)]
    ]
    longest = [[[*blocks, -1][:2] for blocks in head] for head in lists[0]]
    block_idx = torch.tensor([longest], dtype=torch.int32, device=device)
    q, k, v = (t.to(device) for t in (solution.q, solution.k, solution.v))
    given = minference_ext.block_sparse_attention_with_index(q, k, v, block_idx)
    ranked = minference_ext.block_sparse_attention(q, k, v, 2)
    check.check_solution("given", case, solution, *given)
    assert torch.equal(given[0], ranked[0])
    assert torch.equal(given[1], ranked[1])


def test_ties_go_to_the_lowest_block(device: str) -> None:
    """With q = 0 all scores are equal: row blocks attend blocks 0 and 1."""
    k = torch.randn(1, 1, 300, 64)
    v = torch.zeros(1, 1, 300, 64)
    v[0, 0, torch.arange(300), torch.arange(300) // 64] = 1.0  # one-hot by key block
    out, _ = minference_ext.block_sparse_attention(
        torch.zeros(1, 1, 300, 64).to(device), k.to(device), v.to(device), 2
    )
    for row in (10, 100, 200, 299):
        assert out[0, 0, row].nonzero().flatten().tolist() == list(range(min(row // 64, 1) + 1))


def test_more_row_blocks_than_needed(device: str) -> None:
    """Lists past the last row block are not read; they may hold anything but bad blocks."""
    case = Case("awkward", "", "", (Blocks(((0,), (1,))),), q_len=150)
    case = case.on(device)
    solution = check.solve(case)
    idx = check.block_indices(case, device)
    longer = torch.cat([idx, torch.zeros_like(idx)], dim=2)
    q, k, v = (t.to(device) for t in (solution.q, solution.k, solution.v))
    result = minference_ext.block_sparse_attention_with_index(q, k, v, longer)
    check.check_solution("longer lists", case, solution, *result)
