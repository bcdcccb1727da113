"""sparse_attention, and what holds for every pattern: one result however a call is split over
threads, heads, sequences and ops; keys that a row does not attend cannot touch it; plan_stats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import minference_ext
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import cases, check
from tests.cases import DTYPES, Case, Layout
from tests.check import Arguments
from tests.reference import (
    AShape,
    Blocks,
    BlockSparse,
    Dense,
    Lines,
    Mode,
    Pattern,
    TriShape,
    VerticalSlash,
)

_lines = Lines((0, 9, 100, 222), (0, 64, 150))
ONE_OF_EACH: dict[str, Pattern] = {
    "dense": Dense(),
    "a_shape": AShape(3, 70),
    "tri_shape": TriShape(2, 65, 30),
    "vertical_slash": VerticalSlash(40, 105),
    "lines": _lines,
    "block_sparse": BlockSparse(2),
    "blocks": Blocks(((0,), (1, 0), (2, 1))),
}
# A NaN in q or k also reaches an estimation, which says nothing about one.
NOT_ESTIMATED = {
    name: pattern
    for name, pattern in ONE_OF_EACH.items()
    if not isinstance(pattern, VerticalSlash | BlockSparse)
}
of_each = pytest.mark.parametrize("pattern", ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())
of_each_not_estimated = pytest.mark.parametrize(
    "pattern", NOT_ESTIMATED.values(), ids=NOT_ESTIMATED.keys()
)


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Equal to the last bit, positions of NaN included."""
    return all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("case", cases.MIXED, ids=str)
def test_values(case: Case, device: str) -> None:
    check.check_case(case, device)


@pytest.mark.parametrize(
    "case",
    [
        next(case for case in cases.ALL if case.name == name)
        for name in (
            "dense-bfloat16",
            "a-shape-left-padded",
            "tri-shape-packed",
            "lines-per-head",
            "lines-reference-no-diagonal",
            "vs-sizes-per-head",
            "vs-every-128-n500",
            "top-k-float16",
            "blocks-packed-chunks",
        )
    ],
    ids=str,
)
def test_values_of_one_pattern(case: Case, device: str) -> None:
    """The op that takes any pattern, where the other tests call the pattern's own op."""
    check.check_case(case, device, through_sparse_attention=True)


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    """Any patterns, heads, lengths, layout, padding and packing at once."""
    size, line, block = st.integers(0, 150), st.integers(-1, 420), st.integers(-1, 7)
    pattern = st.one_of(
        st.builds(Dense),
        st.builds(AShape, size, size),
        st.builds(TriShape, size, size, size),
        st.builds(VerticalSlash, size, size),
        st.builds(BlockSparse, st.integers(1, 4)),
        st.builds(
            Lines,
            st.lists(line, max_size=15).map(tuple),
            st.lists(st.one_of(line, st.just(0)), max_size=6).map(tuple),
        ),
        st.builds(Blocks, st.lists(st.lists(block, max_size=4).map(tuple), min_size=1).map(tuple)),
    )
    num_heads_kv = draw(st.integers(1, 2))
    case = Case(
        "corner",
        "drawn",
        "",
        tuple(draw(st.lists(pattern, min_size=1, max_size=4))),
        num_heads_q=num_heads_kv * draw(st.integers(1, 3)),
        num_heads_kv=num_heads_kv,
        head_dim=draw(st.sampled_from((16, 24, 64, 72, 128))),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(("contiguous", "heads_last", "every_second", "unaligned"))),
        softmax_scale=draw(st.sampled_from((None, 0.3))),
        mode=draw(st.sampled_from(cases.MODES)),
        estimate_every=draw(st.sampled_from((0, 0, 64, 128))),
        covers_all=None,
    )
    q_len, before = st.integers(0, 260), st.integers(0, 160)
    if draw(st.booleans()):
        lengths = draw(st.lists(st.tuples(q_len, before), min_size=1, max_size=4))
        return replace(case, lengths=tuple((n, n + more) for n, more in lengths))
    case = replace(case, q_len=draw(q_len), batch=draw(st.integers(1, 3)))
    case = replace(case, kv_len=case.q_len + draw(before))
    if draw(st.booleans()):
        first = st.integers(0, case.seq_kv)
        padding = draw(st.lists(first, min_size=case.batch, max_size=case.batch))
        case = replace(case, first_valid_key=tuple(padding))
    return case


@given(drawn_cases())
def test_drawn_calls(case: Case) -> None:
    check.check_case(case)
    if not case.is_estimated:
        check.check_attended(case)


# ---- One result ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.MIXED, ids=str)
def test_threads_and_reruns_change_no_bit(case: Case, device: str) -> None:
    case = case.on(device)
    inputs = check.draw(case, 0)
    results = []
    for count in (1, 2, 3, 2):
        with check.threads(count):
            results.append(check.run(case, check.arguments(case, *inputs, device)))
    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
def test_each_head_equals_a_call_of_its_own(dtype: torch.dtype, mode: Mode, device: str) -> None:
    case = replace(cases.MIXED[0], dtype=dtype, mode=mode)
    arguments = check.arguments(case, *check.draw(case, 0), device)
    out, lse = check.run(case, arguments)
    for head, pattern in enumerate(case.patterns):
        alone = replace(case, heads=(pattern,), num_heads_q=1, num_heads_kv=1)
        group = head // 4
        inputs = (arguments.q[:, [head]], arguments.k[:, [group]], arguments.v[:, [group]])
        expected = check.run(alone, Arguments(*inputs, {}))
        assert same((out[:, [head]], lse[:, [head]]), expected), f"head {head}: {pattern}"


def sequences_alone(case: Case, arguments: Arguments) -> list[tuple[Tensor, Tensor]]:
    """The op on every sequence of a padded or packed case by itself: [1, heads, length, ...]."""
    results = []
    for span in check.spans(case):
        alone = replace(
            case, q_len=span.q_len, kv_len=span.kv_len, batch=1, first_valid_key=None, lengths=None
        )
        if case.lengths is None:
            rows, keys = (span.batch, slice(None), span.q), (span.batch, slice(None), span.kv)
            inputs = [arguments.q[rows], arguments.k[keys], arguments.v[keys]]
        else:
            packed = (arguments.q[span.q], arguments.k[span.kv], arguments.v[span.kv])
            inputs = [t.transpose(0, 1) for t in packed]
        q, k, v = (t[None] for t in inputs)
        results.append(check.run(alone, Arguments(q, k, v, {})))
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@of_each
def test_padded_rows_equal_unpadded_calls(
    pattern: Pattern, dtype: torch.dtype, device: str
) -> None:
    """To the last bit, with padding inside, at and beyond row blocks; padding gives empty rows."""
    case = Case(
        "awkward", "padded", "", (pattern,), q_len=200, kv_len=330, batch=5, num_heads_q=2,
        num_heads_kv=1, dtype=dtype, first_valid_key=(0, 64, 130, 177, 330), covers_all=None,
    )  # fmt: skip
    arguments = check.arguments(case, *check.draw(case, 0), device)
    out, lse = check.run(case, arguments)
    for span, expected in zip(check.spans(case), sequences_alone(case, arguments), strict=True):
        rows = (slice(span.batch, span.batch + 1), slice(None), span.q)
        assert same((out[rows], lse[rows]), expected), f"row {span.batch}"
        assert out[span.batch, :, : span.q.start].eq(0).all()
        assert lse[span.batch, :, : span.q.start].eq(-math.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@of_each
def test_packed_sequences_equal_separate_calls(
    pattern: Pattern, dtype: torch.dtype, device: str
) -> None:
    case = Case(
        "awkward", "packed", "", (pattern,), num_heads_q=2, num_heads_kv=1, dtype=dtype,
        lengths=((65, 65), (0, 0), (1, 300), (130, 231), (0, 7), (300, 300)), covers_all=None,
    )  # fmt: skip
    arguments = check.arguments(case, *check.draw(case, 0), device)
    out, lse = check.batch_first(case, *check.run(case, arguments))
    for span, expected in zip(check.spans(case), sequences_alone(case, arguments), strict=True):
        assert same((out[:, :, span.q], lse[:, :, span.q]), expected), f"queries {span.q}"


@of_each
def test_strides_change_no_bit(pattern: Pattern, device: str) -> None:
    case = Case("regular", "", "", (pattern,), q_len=300, batch=2, covers_all=None)
    case = case.on(device)
    inputs = check.draw(case, 0)
    # By kernel: rows that are not aligned may take another one.
    results: dict[str, tuple[Tensor, Tensor]] = {}
    layouts: tuple[Layout, ...] = (
        "contiguous", "heads_last", "fused", "every_second", "unaligned",
    )  # fmt: skip
    for layout in layouts:
        strided = replace(case, layout=layout)
        arguments = check.arguments(strided, *inputs, device)
        kernel = minference_ext.attention_kernel(arguments.q, arguments.k, arguments.v).name
        found = check.run(strided, arguments)
        assert same(found, results.setdefault(kernel, found)), layout
    assert len(results) == 1 or set(results) == {"sm80", "sm90"}


# ---- Keys that a row does not attend -------------------------------------------------------------

Poison = Literal["k nan", "k inf", "v nan", "v inf"]


def poisoned_keys(mask: Tensor) -> list[int]:
    """Of one head's mask [q_len, kv_len]: a key that no row attends, and keys that only some rows
    of a row block attend (the first, a middle and the last such key)."""
    unattended = (~mask.any(0)).nonzero().flatten().tolist()
    split = set()
    for begin in range(0, mask.shape[0], 64):
        block = mask[begin : begin + 64]
        split.update((block.any(0) & ~block.all(0)).nonzero().flatten().tolist())
    ordered = sorted(split)
    return [*unattended[:1], *{ordered[n] for n in (0, len(ordered) // 2, -1) if ordered}]


def check_poison(case: Case, poison: Poison, device: str = "cpu") -> None:
    """A NaN or an infinity in one key or value reaches exactly the rows that attend the key."""
    case = case.on(device)
    solution = check.solve(case)
    assert case.num_heads_kv == 1
    for key in poisoned_keys(solution.mask[0, 0]):
        data = {"q": solution.q, "k": solution.k.clone(), "v": solution.v.clone()}
        which, value = poison.split()
        data[which][:, :, key] = float(value)
        out, lse = check.run(case, check.arguments(case, **data, device=device))
        out, lse = out.cpu(), lse.cpu()
        touched = solution.mask[..., key]
        if poison != "k inf":  # q . k of -inf has no weight, and then the row stays as it was
            assert not out[touched].isfinite().any(), f"{poison} at key {key} is hidden"
        if poison == "k nan":
            assert lse[touched].isnan().all(), f"{poison} at key {key} is not in lse"
        out = torch.where(touched[..., None], solution.out.to(out.dtype), out)
        if which == "k":
            lse = torch.where(touched, solution.lse.float(), lse)
        check.check_solution(f"{case}: {poison} at key {key}", case, solution, out, lse)


def poisoned(pattern: Pattern, dtype: torch.dtype) -> Case:
    return Case(
        "corner", "poisoned", "", (pattern,), q_len=280, num_heads_q=2, num_heads_kv=1, dtype=dtype,
        covers_all=None,
    )  # fmt: skip


@pytest.mark.parametrize("poison", ["v nan", "v inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@of_each
def test_nan_in_a_value_stays_with_the_rows_that_attend_it(
    pattern: Pattern, dtype: torch.dtype, poison: Poison, device: str
) -> None:
    check_poison(poisoned(pattern, dtype), poison, device)


@pytest.mark.parametrize("poison", ["k nan", "k inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@of_each_not_estimated
def test_nan_in_a_key_stays_with_the_rows_that_attend_it(
    pattern: Pattern, dtype: torch.dtype, poison: Poison, device: str
) -> None:
    check_poison(poisoned(pattern, dtype), poison, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@pytest.mark.parametrize("mode", cases.MODES)
def test_nan_at_verticals_and_beside_them(mode: Mode, dtype: torch.dtype, device: str) -> None:
    """Columns that pieces hold for some row blocks, in every mode."""
    case = Case(
        "corner", "poisoned columns", "", (Lines((5, 70, 71, 140), (40, 101)),), q_len=230,
        num_heads_q=1, num_heads_kv=1, dtype=dtype, mode=mode,
    )  # fmt: skip
    for poison in ("k nan", "v nan", "v inf"):
        check_poison(case, poison, device)


@of_each
def test_padding_may_hold_anything(pattern: Pattern, device: str) -> None:
    case = Case(
        "corner", "poisoned padding", "", (pattern,), q_len=150, kv_len=290, batch=3, num_heads_q=2,
        num_heads_kv=1, first_valid_key=(70, 200, 290), covers_all=None,
    )  # fmt: skip
    case = case.on(device)
    solution = check.solve(case)
    q, k, v = solution.q.clone(), solution.k.clone(), solution.v.clone()
    for span in check.spans(case):
        q[span.batch, :, : span.q.start] = math.nan
        k[span.batch, :, : span.kv.start] = math.inf
        v[span.batch, :, : span.kv.start] = math.nan
    result = check.run(case, check.arguments(case, q, k, v, device))
    check.check_solution(str(case), case, solution, *result)


@of_each
def test_nan_stays_in_its_sequence(pattern: Pattern, device: str) -> None:
    """A packed sequence full of NaN has neighbours on both sides, in memory and in tiles."""
    case = Case(
        "corner", "poisoned sequence", "", (pattern,), num_heads_q=2, num_heads_kv=1,
        lengths=((90, 90), (33, 70), (200, 201)), covers_all=None,
    )  # fmt: skip
    case = case.on(device)
    solution = check.solve(case)
    _, middle, _ = check.spans(case)
    q, k, v = solution.q.clone(), solution.k.clone(), solution.v.clone()
    for tensor, rows in ((q, middle.q), (k, middle.kv), (v, middle.kv)):
        tensor[:, :, rows] = math.nan
    arguments = check.arguments(case, q, k, v, device)
    out, lse = check.run(case, arguments)
    out[middle.q] = solution.out[0, :, middle.q].transpose(0, 1).to(out)
    lse[:, middle.q] = solution.lse[0, :, middle.q].to(lse)
    check.check_solution(str(case), case, solution, out, lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.dtype_name)
@of_each_not_estimated
def test_nan_in_a_query_stays_in_its_row(pattern: Pattern, dtype: torch.dtype, device: str) -> None:
    case = Case("corner", "poisoned query", "", (pattern,), q_len=200, dtype=dtype, covers_all=None)
    case = case.on(device)
    solution = check.solve(case)
    q = solution.q.clone()
    q[0, 1, 130] = math.nan
    out, lse = check.run(case, check.arguments(case, q, solution.k, solution.v, device))
    assert out[0, 1, 130].isnan().all()
    assert lse[0, 1, 130].isnan()
    out, lse = out.cpu().clone(), lse.cpu().clone()
    out[0, 1, 130], lse[0, 1, 130] = solution.out[0, 1, 130].to(dtype), solution.lse[0, 1, 130]
    check.check_solution(str(case), case, solution, out, lse)


# ---- Plan statistics -----------------------------------------------------------------------------


def stats_cases() -> list[Case]:
    """Every third case with a plan, all with estimated lines; whole calls only."""
    chosen = [*cases.STREAMING[::3], *cases.LINES[::3], *cases.BLOCK_SPARSE[::3]]
    chosen += [*cases.VERTICAL_SLASH, *cases.MIXED]
    return [case for case in chosen if not case.estimate_every and case.seq_kv < 4000]


@pytest.mark.parametrize("case", stats_cases(), ids=str)
def test_stats_count_pairs(case: Case, device: str) -> None:
    case = case.on(device)
    solution = check.solve(case)
    arguments = check.arguments(case, solution.q, solution.k, solution.v, device)
    stats = minference_ext.plan_stats(
        arguments.q,
        arguments.k,
        [check.head_pattern(pattern) for pattern in case.patterns],
        **check.sparse_keywords(case, device),
        **arguments.without_outputs,
    )
    spans = check.spans(case)
    assert stats.attended_pairs.shape == (len(spans), case.num_heads_q)
    for n, span in enumerate(spans):
        pairs = solution.mask[span.batch, :, span.q, span.kv].sum((1, 2))
        assert stats.attended_pairs[n].tolist() == pairs.tolist()
        before = span.kv_len - span.q_len
        causal = span.q_len * before + span.q_len * (span.q_len + 1) // 2
        assert stats.causal_pairs[n].tolist() == [causal] * case.num_heads_q
        assert stats.computed_pairs[n].ge(stats.attended_pairs[n]).all()
        for head, pattern in enumerate(case.patterns):
            if isinstance(pattern, Dense | Lines | VerticalSlash):
                assert int(stats.is_dense[n, head]) == isinstance(pattern, Dense)
            counts = (int(stats.num_vertical[n, head]), int(stats.num_slash[n, head]))
            if isinstance(pattern, Lines):
                lines = pattern.within(span.kv_len)
                assert counts == (len({*lines.vertical} - {-1}), len({*lines.slash} - {-1}))
            elif isinstance(pattern, VerticalSlash) and span.q_len:
                assert counts == (
                    min(span.kv_len, max(30, pattern.vertical_size)),
                    min(span.kv_len, max(50, pattern.slash_size)),
                )
