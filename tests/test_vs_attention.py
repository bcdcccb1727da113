"""vs_attention and vs_attention_with_index against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import minference_ext
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import cases, check
from tests.cases import MODES, Case
from tests.check import Arguments
from tests.reference import Lines, Mode, VerticalSlash

# ---- Given lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.LINES, ids=str)
def test_values_of_given_lines(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize("case", cases.LINES, ids=str)
def test_pairs_of_given_lines(case: Case, device: str) -> None:
    check.check_attended(case, device)


@st.composite
def line_cases(draw: st.DrawFn) -> Case:
    """One head, any lengths, lists of any density, close lines as often as far ones."""
    q_len = draw(st.integers(1, 200))
    kv_len = q_len + draw(st.integers(0, 200))
    key = st.integers(0, kv_len - 1)
    near = st.integers(0, min(kv_len - 1, 70))
    entry = st.one_of(key, near, st.just(-1), st.just(0))
    runs = draw(st.lists(st.tuples(key, st.integers(1, 80)), max_size=2))
    vertical = [v for begin, n in runs for v in range(begin, min(begin + n, kv_len))]
    vertical += draw(st.lists(entry, max_size=10))
    slash = draw(st.lists(entry, max_size=8))
    lines = Lines(tuple(vertical), tuple(slash))
    return Case("corner", "drawn", "", (lines,), q_len, kv_len, 1, 1, 1, covers_all=None)


@given(line_cases())
def test_pairs_of_drawn_lines(case: Case) -> None:
    """On outputs: each mode attends the oracle's pairs, each once, and exact within cover within
    reference (which keeps columns right of its last tile, so also without offset 0)."""
    attended = []
    for mode in MODES:
        of_mode = replace(case, mode=mode, name=f"{case.heads[0]} in mode {mode}")
        mask, _ = check.attended_pairs(of_mode, *check.draw(of_mode, 0)[:2])
        weights, lse = check.attended_weights(of_mode)
        check.check_weights(of_mode.name, mask, weights, lse)
        attended.append(weights > 0)
    cover, exact, merged = attended
    assert not (exact & ~cover).any()
    assert not (cover & ~merged).any()


@given(line_cases(), st.randoms(use_true_random=False))
def test_lists_are_sets(case: Case, random: object) -> None:
    """Order and repetition change nothing, not even a bit."""
    (lines,) = (pattern for pattern in case.heads if isinstance(pattern, Lines))
    other = Lines(
        tuple(reversed(lines.vertical)) + lines.vertical[:3],
        (-1, *sorted(lines.slash), *lines.slash),
    )
    q, k, v = check.draw(case, 0)
    results = [
        check.run(varied, check.arguments(varied, q, k, v))
        for varied in (case, replace(case, heads=(other,)))
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_indices_with_any_strides(device: str) -> None:
    """One list for all heads (stride 0), and lists inside a wider tensor."""
    case = Case("awkward", "", "", (Lines((0, 5, 90, 200), (0, 64, 170)),), q_len=300)
    case = case.on(device)
    solution = check.solve(case)
    vertical, slash = check.line_indices(case, device)
    wide = torch.full((1, 4, 9), 77, dtype=torch.int32, device=device)
    wide[:, 1:3, 2:5] = slash
    q, k, v = (t.to(device) for t in (solution.q, solution.k, solution.v))
    result = minference_ext.vs_attention_with_index(
        q, k, v, vertical[:, :1].expand(1, 2, -1), wide[:, 1:3, 2:5]
    )
    check.check_solution("strided lists", case, solution, *result)


# ---- Prefill in chunks ---------------------------------------------------------------------------


def chunk_of(case: Case, arguments: Arguments, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The op on queries begin..end-1 with the keys up to the last of them."""
    before = case.seq_kv - case.seq_q
    part = replace(case, q_len=end - begin, kv_len=before + end)
    keys = slice(0, before + end)
    inputs = (arguments.q[:, :, begin:end], arguments.k[:, :, keys], arguments.v[:, :, keys])
    return check.run(part, Arguments(*inputs, {"softmax_scale": case.softmax_scale}))


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)


@pytest.mark.parametrize(
    ("mode", "ends"),
    [
        ("cover", (64, 128, 192, 256, 320, 384, 450)),
        ("cover", (128, 384, 450)),
        ("cover", (384, 450)),
        ("exact", (64, 320, 450)),
        ("exact", (1, 50, 177, 300, 450)),
        ("reference", (128, 320, 450)),
    ],
)
@pytest.mark.parametrize("kv_len", [450, 487, 514, 700])
def test_chunks_give_the_whole_prompt(
    mode: Mode, ends: tuple[int, ...], kv_len: int, device: str
) -> None:
    """With the same lines, chunks that begin at a multiple of 64 have the whole prompt's row
    blocks. Mode exact has none, so its chunks begin anywhere."""
    heads = (Lines((0, 3, 64, 150, 300, 420), (0, 40, 64, 131, 333)), Lines((7, 201), (65, 180)))
    case = Case("awkward", "", "", heads, q_len=450, kv_len=kv_len, mode=mode)
    case = case.on(device)
    solution = check.solve(case)
    arguments = check.arguments(case, solution.q, solution.k, solution.v, device)
    parts = [
        chunk_of(case, arguments, begin, end)
        for begin, end in zip((0, *ends[:-1]), ends, strict=True)
    ]
    check.check_solution(f"{mode} {ends}", case, solution, *joined(parts))


@pytest.mark.parametrize(("every", "q_len", "kv_len"), [(64, 300, 300), (128, 500, 611)])
@pytest.mark.parametrize("mode", MODES)
def test_estimate_every_equals_calls_by_hand(
    every: int, q_len: int, kv_len: int, mode: Mode, device: str
) -> None:
    case = Case(
        "awkward", "", "", (VerticalSlash(40, 105), VerticalSlash(60, 60)), q_len=q_len,
        kv_len=kv_len, num_heads_q=4, mode=mode, estimate_every=every, covers_all=None,
    )  # fmt: skip
    arguments = check.arguments(case, *check.draw(case, 0), device)
    at_once = check.run(case, arguments)
    by_hand = replace(case, estimate_every=0)
    parts = [
        chunk_of(by_hand, arguments, begin, min(begin + every, q_len))
        for begin in range(0, q_len, every)
    ]
    for got, expected in zip(at_once, joined(parts), strict=True):
        assert torch.equal(got, expected)


# ---- Estimated lines -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.VERTICAL_SLASH, ids=str)
def test_values_of_estimated_lines(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.dtype_name)
def test_equals_estimation_and_given_lines(dtype: torch.dtype, mode: Mode, device: str) -> None:
    case = replace(cases.VERTICAL_SLASH[0], dtype=dtype, q_len=500, kv_len=650)
    q, k, v = (t.to(device) for t in check.draw(case, 0))
    sizes = ([30, 60, 200, 100], [100, 120, 130, 20])
    lines = minference_ext.estimate_vs_index(q, k, *sizes)
    given_lines = minference_ext.vs_attention_with_index(q, k, v, *lines, mode=mode)
    estimated = minference_ext.vs_attention(q, k, v, *sizes, mode=mode, dense_fallback=False)
    assert torch.equal(given_lines[0], estimated[0])
    assert torch.equal(given_lines[1], estimated[1])


def test_one_size_for_all_heads(device: str) -> None:
    q, k, v = (torch.randn(1, 3, 400, 64).to(device) for _ in range(3))
    one = minference_ext.vs_attention(q, k, v, 40, 110, dense_fallback=False)
    each = minference_ext.vs_attention(q, k, v, [40] * 3, [110] * 3, dense_fallback=False)
    assert torch.equal(one[0], each[0])


def test_planted_lines_are_found(device: str) -> None:
    """Keys at three columns and one offset draw most attention: few lines come close to dense
    attention, a band of the same size does not."""
    length, columns, offset = 1500, (200, 611, 1107), 300
    k = torch.randn(1, 1, length, 64)
    q = 0.3 * torch.randn(1, 1, length, 64)
    beacon = torch.zeros(64)
    beacon[:8] = 4.0
    k[0, 0, list(columns)] += beacon
    q[..., :8] += 2.0
    q[0, 0, offset:] += k[0, 0, :-offset]
    v = torch.randn(1, 1, length, 64)
    q, k, v = q.to(device), k.to(device), v.to(device)
    vertical, slash = minference_ext.estimate_vs_index(q, k, 33, 101)
    assert set(columns) <= set(vertical.flatten().tolist())
    assert offset in slash.flatten().tolist()
    dense = minference_ext.dense_attention(q, k, v)[0][:, :, -64:]
    sparse = minference_ext.vs_attention(q, k, v, 33, 101, dense_fallback=False)[0][:, :, -64:]
    band = minference_ext.a_shape_attention(q, k, v, 30, 300)[0][:, :, -64:]
    assert float((sparse - dense).norm()) < 0.25 * float((band - dense).norm())


# ---- Dense fallback ------------------------------------------------------------------------------


def stats_of(
    q: Tensor, k: Tensor, size: VerticalSlash, mode: Mode, dense_fallback: bool
) -> minference_ext.PlanStats:
    patterns = [check.head_pattern(size)] * q.shape[1]
    return minference_ext.plan_stats(q, k, patterns, mode=mode, dense_fallback=dense_fallback)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.dtype_name)
def test_lines_that_cost_more_than_dense(dtype: torch.dtype, device: str) -> None:
    q, k, v = (torch.randn(1, 2, 700, 64, dtype=dtype).to(device) for _ in range(3))
    size = VerticalSlash(700, 700)
    stats = stats_of(q, k, size, "cover", dense_fallback=True)
    assert stats.is_dense.eq(1).all()
    assert stats.attended_pairs.eq(700 * 701 // 2).all()
    result = minference_ext.vs_attention(q, k, v, 700, 700)
    dense = minference_ext.dense_attention(q, k, v)
    assert torch.equal(result[0], dense[0])
    assert torch.equal(result[1], dense[1])
    assert stats_of(q, k, size, "cover", dense_fallback=False).is_dense.eq(0).all()


@pytest.mark.parametrize("mode", MODES[1:])
def test_only_cover_falls_back(mode: Mode, device: str) -> None:
    case = replace(cases.VERTICAL_SLASH[0], mode=mode, heads=(VerticalSlash(200, 130),), q_len=400)
    case = case.on(device)
    solution = check.solve(case)
    q, k, v = (t.to(device) for t in (solution.q, solution.k, solution.v))
    assert stats_of(q, k, VerticalSlash(200, 130), mode, dense_fallback=True).is_dense.eq(0).all()
    result = minference_ext.vs_attention(q, k, v, 200, 130, mode=mode, dense_fallback=True)
    check.check_solution(mode, case, solution, *result)


@pytest.mark.parametrize("size", [VerticalSlash(30, 100), VerticalSlash(300, 400)])
@pytest.mark.parametrize("length", [300, 2000])
def test_stats_tell_whether_a_head_is_dense(size: VerticalSlash, length: int, device: str) -> None:
    q, k, v = (torch.randn(1, 2, length, 64).to(device) for _ in range(3))
    is_dense = stats_of(q, k, size, "cover", dense_fallback=True).is_dense[0]
    if minference_ext.predict(check.head_pattern(size), length, length).is_dense:
        assert is_dense.eq(1).all()
    sizes = (size.vertical_size, size.slash_size)
    result = minference_ext.vs_attention(q, k, v, *sizes)
    dense = minference_ext.dense_attention(q, k, v)
    sparse = minference_ext.vs_attention(q, k, v, *sizes, dense_fallback=False)
    for head, head_is_dense in enumerate(is_dense.tolist()):
        expected = dense if head_is_dense else sparse
        assert torch.equal(result[0][:, head], expected[0][:, head])
        assert torch.equal(result[1][:, head], expected[1][:, head])


def test_given_lines_never_fall_back(device: str) -> None:
    case = Case("corner", "", "", (Lines(tuple(range(300)), tuple(range(300))),), q_len=300)
    q, k, _ = (t.to(device) for t in check.draw(case, 0))
    keywords = check.sparse_keywords(case, device) | {"dense_fallback": True}
    patterns = [check.head_pattern(pattern) for pattern in case.patterns]
    stats = minference_ext.plan_stats(q, k, patterns, **keywords)
    assert stats.is_dense.eq(0).all()


def test_scale_changes_what_is_estimated(device: str) -> None:
    """A flat softmax ranks other columns than a steep one: the estimation uses the op's scale."""
    case = replace(
        cases.VERTICAL_SLASH[0], heads=(VerticalSlash(60, 110),), softmax_scale=1.5, q_len=500
    )
    check.check_case(case, device)
    q, k, _ = (t.to(device) for t in check.draw(case, 0))
    steep, flat = (
        minference_ext.estimate_vs_index(q, k, 60, 110, softmax_scale=scale)[0]
        for scale in (1.5, 1 / math.sqrt(64))
    )
    assert not torch.equal(steep, flat)
