"""The truth is checked too: masks in a second formulation, and every kind of corruption noticed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import cases, check, reference
from tests.cases import BF16, DTYPES, F32, Case
from tests.reference import Blocks, Lines

# ---- Masks, pair by pair from the sentences of sparse_attention.h --------------------------------


Kind = Literal["dense", "a_shape", "tri_shape", "exact", "cover", "blocks"]


def covers(r: int, j: int, q_len: int, kv_len: int, slash: Sequence[int]) -> bool:
    end = r // 64 * 64 + 64 + (kv_len - q_len)
    return any(end - 64 - s <= j < end - s for s in slash)


def is_attended(
    kind: Kind, r: int, j: int, q_len: int, kv_len: int, numbers: tuple[int, int, int]
) -> bool:
    i = r + (kv_len - q_len)
    o = i - j
    sink, window, last = numbers
    lines = [n for n in numbers if n < kv_len]
    return (
        o >= 0
        and {
            "dense": True,
            "a_shape": j < sink or o < window,
            "tri_shape": j < sink or o < window or i >= kv_len - last,
            "exact": j in lines or o in lines,
            "cover": j in lines or covers(r, j, q_len, kv_len, lines),
            "blocks": j // 64 in numbers,
        }[kind]
    )


def mask_of(kind: Kind, q_len: int, kv_len: int, numbers: tuple[int, int, int]) -> Tensor:
    row_blocks = math.ceil(q_len / 64)
    match kind:
        case "dense":
            return reference.dense_mask(q_len, kv_len)
        case "a_shape":
            return reference.a_shape_mask(q_len, kv_len, *numbers[:2])
        case "tri_shape":
            return reference.tri_shape_mask(q_len, kv_len, *numbers)
        case "blocks":
            return reference.block_mask(q_len, kv_len, [numbers] * row_blocks)
    inside = [n for n in numbers if n < kv_len]
    return reference.vertical_slash_mask(q_len, kv_len, inside, inside, kind)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (7, 7), (66, 66), (1, 90), (65, 140), (130, 193)]
)
@pytest.mark.parametrize("numbers", [(0, 0, 0), (1, 3, 2), (63, 5, 64), (2, 65, 70), (0, 1, 150)])
def test_masks_say_what_the_header_says(
    kind: Kind, q_len: int, kv_len: int, numbers: tuple[int, int, int]
) -> None:
    expected = [
        [is_attended(kind, r, j, q_len, kv_len, numbers) for j in range(kv_len)]
        for r in range(q_len)
    ]
    assert mask_of(kind, q_len, kv_len, numbers).tolist() == expected


def walked_lists(
    row_begin: int, q_len: int, kv_len: int, vertical: Sequence[int], slash: Sequence[int]
) -> tuple[list[int], list[int]]:
    """merged_lists() as the original walks both lists; columns right of the last tile stay."""
    end = row_begin + 64 + (kv_len - q_len)
    tiles: list[int] = []
    columns: list[int] = []
    points = sorted(v for v in set(vertical) if v < end)
    lines = sorted((s for s in set(slash) if s < end), reverse=True)
    if not lines:
        return tiles, points
    right = max(end - lines.pop(0), 64)
    left = right - 64
    while points or lines:
        if points and points[0] < right:
            v = points.pop(0)
            if v < left:
                columns.append(v)
        elif lines:
            reach = max(end - lines.pop(0), 64)
            if reach > right + 64:
                tiles += range(left, right, 64)
                left, right = reach - 64, reach
            elif reach > right:
                right += 64
        else:
            columns.append(points.pop(0))
    tiles += range(left, right, 64)
    return [t for t in tiles if t < kv_len], columns


lists = st.lists(st.integers(0, 399), max_size=12)


@given(st.integers(1, 200), st.integers(0, 200), lists, lists)
def test_merged_lists_in_two_formulations(
    q_len: int, before: int, vertical: list[int], slash: list[int]
) -> None:
    kv_len = before + q_len
    vertical = [v for v in vertical if v < kv_len]
    for row_begin in range(0, q_len, 64):
        arguments = (row_begin, q_len, kv_len, vertical, slash)
        assert reference.merged_lists(*arguments) == walked_lists(*arguments)


@given(st.integers(1, 200), st.integers(0, 200), lists, lists)
def test_exact_within_cover_within_reference(
    q_len: int, before: int, vertical: list[int], slash: list[int]
) -> None:
    kv_len = before + q_len
    lines = Lines(tuple(vertical), tuple(slash)).within(kv_len)
    exact, cover, merged = (
        reference.vertical_slash_mask(q_len, kv_len, lines.vertical, lines.slash, mode)
        for mode in ("exact", "cover", "reference")
    )
    assert not (exact & ~cover).any()
    assert not (cover & ~merged).any()


def test_attention_against_torch() -> None:
    q, k, v = (torch.randn(50, 16, dtype=torch.float64) for _ in range(3))
    mask = reference.a_shape_mask(50, 50, 3, 9)
    out, lse = reference.attention(q, k, v, mask, 0.3)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask[None], scale=0.3
    )
    assert torch.allclose(out, plain[0], rtol=1e-12, atol=1e-12)
    sums = [math.fsum(math.exp(float(q[r] @ k[j]) * 0.3) for j in range(50) if mask[r, j])
            for r in range(50)]  # fmt: skip
    assert torch.allclose(lse, torch.tensor(sums, dtype=torch.float64).log(), rtol=1e-12)


def test_rows_without_keys() -> None:
    q, k, v = (torch.randn(5, 8) for _ in range(3))
    mask = torch.zeros(5, 5, dtype=torch.bool)
    for formula in (reference.attention, reference.attention_low_precision):
        out, lse = formula(q, k, v, mask, 1.0)
        assert out.eq(0).all()
        assert lse.eq(-math.inf).all()


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 9), (5, 5), (40, 90), (70, 70)])
def test_scores_pair_by_pair(q_len: int, kv_len: int) -> None:
    q, k = torch.randn(q_len, 8), torch.randn(kv_len, 8)
    columns = torch.zeros(kv_len, dtype=torch.float64)
    diagonals = torch.zeros(kv_len, dtype=torch.float64)
    for r in range(max(0, q_len - 64), q_len):
        i = r + kv_len - q_len
        terms = [math.exp(0.3 * float(q[r].double() @ k[j].double())) for j in range(i + 1)]
        for j, term in enumerate(terms):
            columns[j] += term / math.fsum(terms)
            diagonals[i - j] += term / math.fsum(terms)
    for got, expected in zip(reference.vs_scores(q, k, 0.3), (columns, diagonals), strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-15)


def test_selection() -> None:
    scores = torch.tensor([0.0] * 30 + [1.0, 3.0, 2.0, 3.0, 0.0])
    assert reference.select_lines(scores, 33, 30, 30) == ([*range(30), 31, 32, 33], 0.5)
    assert reference.select_lines(scores, 31, 30, 30) == ([*range(30), 31], 0.0)  # tie: the lowest
    assert reference.select_lines(scores, 5, 30, 30)[0] == [*range(30)]
    assert reference.select_lines(scores, 99, 30, 30) == ([*range(35)], math.inf)
    assert reference.select_lines(scores, 20, 20, 30)[0] == [*range(20)]
    assert reference.select_lines(scores[:7], 0, 50, 100)[0] == [*range(7)]


def test_block_selection() -> None:
    k = torch.zeros(200, 8)
    k[64:128], k[128:192], k[192:] = 3.0, 2.0, 9.0
    chosen, gap = reference.block_top_k(torch.ones(200, 8), k, 2)
    assert chosen == [[0], [0, 1], [1, 2], [1, 3]]  # means, so the 8 keys of block 3 weigh most
    assert gap == pytest.approx(8 / 72)


# ---- Cases ---------------------------------------------------------------------------------------


def test_cases_have_one_name_and_a_reason_each() -> None:
    assert [name for name, n in Counter(case.name for case in cases.ALL).items() if n > 1] == []
    assert all(case.reason for case in cases.ALL)


@pytest.mark.parametrize(
    "of_op", [cases.STREAMING, cases.LINES, cases.VERTICAL_SLASH, cases.BLOCK_SPARSE, cases.MIXED]
)
def test_many_cases_are_sparse(of_op: list[Case]) -> None:
    assert sum(case.covers_all is False for case in of_op) > len(of_op) / 3
    assert {case.group for case in cases.ALL} == {"regular", "awkward", "corner"}


def test_a_case_that_is_denser_than_it_says_is_noticed() -> None:
    case = replace(cases.DENSE[0], q_len=20, covers_all=False)
    with pytest.raises(AssertionError, match="leaves pairs out"):
        check.solve(case)


# ---- Corruption ----------------------------------------------------------------------------------

_case = Case("corner", "corrupted", "", (Lines((70,), (0, 64)),), q_len=150, head_dim=32)


def _nan_element(out: Tensor, lse: Tensor) -> None:
    out[0, 1, 77, 3] = math.nan


def _element_not_written(out: Tensor, lse: Tensor) -> None:
    lse[0, 1, 149] = math.nan


def _empty_row_lse(out: Tensor, lse: Tensor) -> None:
    lse[0, 0, 0] = math.inf


def _wrong_scale_of_a_row(out: Tensor, lse: Tensor) -> None:
    out[0, 0, 149] *= 1.1


def _one_row_of_another_head(out: Tensor, lse: Tensor) -> None:
    out[0, 0, 100] = out[0, 1, 100]


def _row_shifted(out: Tensor, lse: Tensor) -> None:
    out[:] = out.roll(1, 2)


def _base_two_lse(out: Tensor, lse: Tensor) -> None:
    lse[:] = lse / math.log(2)


def _lse_off_by_little(out: Tensor, lse: Tensor) -> None:
    lse[0, 0, 80] += 3e-5


Corruption = Callable[[Tensor, Tensor], None]
CORRUPTIONS: list[Corruption] = [
    _nan_element,
    _element_not_written,
    _empty_row_lse,
    _wrong_scale_of_a_row,
    _one_row_of_another_head,
    _row_shifted,
    _base_two_lse,
    _lse_off_by_little,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda function: function.__name__[1:])
def test_corruption_is_noticed(corrupt: Corruption, dtype: torch.dtype) -> None:
    case = replace(_case, dtype=dtype)
    solution = check.solve(case)
    out, lse = solution.out.to(dtype), solution.lse.float()
    check.check_solution("right", case, solution, out, lse)
    corrupt(out, lse)
    with pytest.raises(AssertionError, match=r"wrong: (out|lse)"):
        check.check_solution("wrong", case, solution, out, lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
def test_the_baseline_passes_and_a_worse_one_does_not(dtype: torch.dtype) -> None:
    case = replace(cases.DENSE[0], q_len=300, dtype=dtype)
    solution = check.solve(case)
    out, lse = solution.baseline_out, solution.baseline_lse
    check.check_solution("baseline", case, solution, out.to(dtype), lse.float())
    term = check.rounding_term(dtype, solution.out)
    allowed = 2 * (out - solution.out).abs().max() + term
    noise = 1.5 * allowed * torch.randn(out.shape).sign()
    with pytest.raises(AssertionError, match="too far"):
        check.check_solution("noisy", case, solution, (out + noise).to(dtype), lse.float())


def test_wrong_type_and_shape_are_noticed() -> None:
    solution = check.solve(_case)
    out, lse = solution.out.float(), solution.lse.float()
    for wrong in (
        (out.double(), lse),
        (out, lse.double()),
        (out[:, :, 1:], lse),
        (out, lse[:, 1:]),
    ):
        with pytest.raises(AssertionError):
            check.check_solution("wrong", _case, solution, *wrong)


def _weights(mask: Tensor) -> tuple[Tensor, Tensor]:
    count = mask.sum(-1, keepdim=True)
    return torch.where(mask, 1 / count, 0.0), count[..., 0].double().log().float()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=cases.dtype_name)
def test_wrong_pairs_are_noticed(dtype: torch.dtype) -> None:
    mask, _ = check.attended_pairs(_case, *check.draw(_case, 0)[:2])
    weights, lse = _weights(mask)
    check.check_weights("right", mask, weights.to(dtype).float(), lse)

    missing, extra = mask.clone(), mask.clone()
    missing[0, 1, 149, 100] = False
    extra[0, 1, 149, 5] = True
    for wrong in (missing, extra):
        with pytest.raises(AssertionError, match=r"\(0, 1, 149, "):
            check.check_weights("wrong", mask, *_weights(wrong))

    twice = mask.double()
    twice[0, 0, 149, 128] = 2
    total = twice.sum(-1, keepdim=True)
    weights = torch.where(mask, twice / total, 0.0)
    with pytest.raises(AssertionError, match="counted more than once"):
        check.check_weights("wrong", mask, weights, total[..., 0].log())

    lse[0, 0, 149] += 1e-3
    with pytest.raises(AssertionError, match="lse of counts"):
        check.check_weights("wrong", mask, _weights(mask)[0], lse)


def test_lists_of_a_case_fit_its_lengths() -> None:
    blocks = Blocks(((0,), (1, 9)))
    assert [blocks.of_row_block(m, 200) for m in range(3)] == [(0,), (1,), (0,)]
    assert Lines((3, 300), (200, -1)).within(200) == Lines((3,), (-1,))
