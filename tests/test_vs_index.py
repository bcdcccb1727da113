"""Estimated lines, their scores, and the lists of the original implementation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import minference_ext
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import cases, check, reference
from tests.cases import BF16, F16, F32, Case
from tests.check import Span
from tests.reference import Lines, VerticalSlash

# ---- Estimation ----------------------------------------------------------------------------------

_base = replace(cases.VERTICAL_SLASH[0], covers_all=None, estimate_every=0)
ESTIMATIONS = [
    *[case for case in cases.VERTICAL_SLASH if case.mode == "cover" and not case.estimate_every],
    *[
        _base.awkward(
            f"estimate-{q}-of-{kv}", q_len=q, kv_len=kv, heads=(VerticalSlash(90, 140),)
        )
        for q, kv in ((1, 1), (1, 200), (31, 300), (64, 64), (64, 3000), (100, 163), (65, 129))
    ],
    *[
        _base.regular(f"estimate-gqa{group}", num_heads_q=2 * group, num_heads_kv=2, q_len=300)
        for group in (1, 4, 7, 8)
    ],
    *[
        _base.awkward(
            f"estimate-d{d}-{cases.dtype_name(dtype)}", head_dim=d, dtype=dtype, q_len=260,
            num_heads_q=2,
        )
        for d in (8, 24, 80, 136, 256)
        for dtype in (F32, BF16)
    ],
    _base.corner("estimate-steep", spread=20.0, reason="most probabilities underflow: zeros tie"),
    _base.corner("estimate-steep-fp16", spread=20.0, dtype=F16),
    _base.corner("estimate-flat", spread=0.0, reason="all probabilities of a row tie"),
    _base.regular(
        "estimate-long", q_len=64, kv_len=20_000, num_heads_q=2, num_heads_kv=1, dtype=BF16,
        heads=(VerticalSlash(1000, 3000),), reason="sizes of the published configurations",
    ),
]  # fmt: skip
# With these, fp32 cannot tell which lines are best; only that the choice fits the op's own scores.
TIED = {"estimate-steep", "estimate-steep-fp16", "estimate-flat"}


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """q, k and what both estimation ops take."""
    given = check.arguments(case, *check.draw(case, case.seed), device)
    return given.q, given.k, given.without_outputs


def sizes(case: Case) -> tuple[list[int], list[int]]:
    patterns = [pattern for pattern in case.patterns if isinstance(pattern, VerticalSlash)]
    return [p.vertical_size for p in patterns], [p.slash_size for p in patterns]


def entries(row: Tensor) -> list[int]:
    """The list in a row: ascending, then -1."""
    values: list[int] = row.tolist()
    count = values.index(-1) if -1 in values else len(values)
    assert values[count:] == [-1] * (len(values) - count)
    assert values[:count] == sorted(set(values[:count]))
    return values[:count]


def each_head(case: Case) -> list[tuple[int, Span, int]]:
    """Sequence number, sequence and head; sequences without queries have nothing to estimate."""
    spans = [(n, span) for n, span in enumerate(check.spans(case)) if span.q_len]
    return [(n, span, head) for n, span in spans for head in range(case.num_heads_q)]


def oracle_scores(case: Case, span: Span, head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """vs_scores() of one head; with fp32 logits: the baseline."""
    q, k, _ = check.draw(case, case.seed)
    group = head // (case.num_heads_q // case.num_heads_kv)
    rows, keys = q[span.batch, head, span.q], k[span.batch, group, span.kv]
    if dtype == torch.float64:
        return reference.vs_scores(rows, keys, case.scale)
    last = rows[-64:].float()
    o = reference.offsets(last.shape[0], span.kv_len)
    logits = (last @ keys.float().T * case.scale).masked_fill(o < 0, -math.inf)
    probabilities = torch.softmax(logits, -1)
    diagonals = torch.zeros(span.kv_len)
    diagonals.index_put_((o[o >= 0],), probabilities[o >= 0], accumulate=True)
    return probabilities.sum(0), diagonals


def check_scores(case: Case, device: str = "cpu") -> None:
    """Both scores of every head against float64, and their sums."""
    case = case.on(device)
    q, k, keywords = inputs(case, device)
    scores = minference_ext.estimate_vs_scores(q, k, **keywords)
    for n, span, head in each_head(case):
        exact = oracle_scores(case, span, head, torch.float64)
        baseline = oracle_scores(case, span, head, torch.float32)
        for kind, got, want, plain in zip(
            ("columns", "slashes"), scores, exact, baseline, strict=True
        ):
            row = got[n, head].cpu()
            assert row.dtype == torch.float32
            assert row.shape == (case.seq_kv,)
            assert row[span.kv_len :].eq(0).all()
            term = 1e-6 * max(1.0, float(want.max()) if want.numel() else 0.0)
            name = f"{case} {kind} of sequence {n} head {head}"
            check.compare(name, row[: span.kv_len], want, plain, term)
            # relative as well: a small score must rank right among small scores
            wrong = (row[: span.kv_len].double() - want).abs() > 1e-4 * want + 1e-9
            assert case.name in TIED or not wrong.any(), f"{name}: {wrong.nonzero().flatten()}"
            rows = min(64, span.q_len)
            assert float(row.double().sum()) == pytest.approx(rows, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", ESTIMATIONS, ids=str)
def test_scores(case: Case, device: str) -> None:
    check_scores(case, device)


@pytest.mark.parametrize("case", ESTIMATIONS, ids=str)
def test_selection_from_the_returned_scores(case: Case, device: str) -> None:
    """Exactly what a sort of the op's own scores gives: forced lines first, ties to the lowest."""
    case = case.on(device)
    q, k, keywords = inputs(case, device)
    scores = minference_ext.estimate_vs_scores(q, k, **keywords)
    lines = minference_ext.estimate_vs_index(q, k, *sizes(case), **keywords)
    for kind in (0, 1):
        minimum, forced = ((30, 30), (50, 100))[kind]
        assert lines[kind].dtype == torch.int32
        assert lines[kind].shape[-1] == min(case.seq_kv, max(minimum, *sizes(case)[kind]))
        for n, span, head in each_head(case):
            of_head = scores[kind][n, head, : span.kv_len].cpu()
            size = sizes(case)[kind][head]
            expected, _ = reference.select_lines(of_head, size, minimum, forced)
            got = entries(lines[kind][n, head])
            assert got == expected, f"{case}: sequence {n} head {head}"
            taken = min(len(expected), forced)
            assert got[:taken] == list(range(taken))


@pytest.mark.parametrize("case", [c for c in ESTIMATIONS if c.name not in TIED], ids=str)
def test_selection_is_that_of_float64(case: Case, device: str) -> None:
    """Up to lines whose scores differ by less than rounding."""
    case = case.on(device)
    q, k, keywords = inputs(case, device)
    lines = minference_ext.estimate_vs_index(q, k, *sizes(case), **keywords)
    for n, span, head in each_head(case):
        for kind, scores in enumerate(oracle_scores(case, span, head, torch.float64)):
            minimum, forced = ((30, 30), (50, 100))[kind]
            got = entries(lines[kind][n, head])
            size = sizes(case)[kind][head]
            expected, _ = reference.select_lines(scores, size, minimum, forced)
            assert len(got) == len(expected)
            swapped = set(got) ^ set(expected)
            assert all(line >= forced for line in swapped)
            if swapped:
                values = scores[sorted(swapped)]
                assert float(values.max() / values.min()) < 1 + 1e-4, f"{case}: {sorted(swapped)}"


def test_padded_rows_estimate_as_unpadded_ones(device: str) -> None:
    case = next(c for c in cases.VERTICAL_SLASH if c.name == "vs-left-padded")
    q, k, keywords = inputs(case, device)
    scores = minference_ext.estimate_vs_scores(q, k, **keywords)
    lines = minference_ext.estimate_vs_index(q, k, *sizes(case), **keywords)
    for n, span in enumerate(check.spans(case)):
        rows, keys = q[n : n + 1, :, span.q], k[n : n + 1, :, span.kv]
        for got, alone in zip(
            (*scores, *lines),
            (
                *minference_ext.estimate_vs_scores(rows, keys),
                *minference_ext.estimate_vs_index(rows, keys, *sizes(case)),
            ),
            strict=True,
        ):
            assert torch.equal(got[n : n + 1, ..., : alone.shape[-1]], alone)


def test_nothing_to_estimate_from(device: str) -> None:
    q, k = torch.randn(2, 3, 0, 16).to(device), torch.randn(2, 3, 0, 16).to(device)
    for result in (
        *minference_ext.estimate_vs_scores(q, k),
        *minference_ext.estimate_vs_index(q, k, 10, 10),
    ):
        assert result.shape == (2, 3, 0)


# ---- Lists of the original implementation --------------------------------------------------------


def converted(
    vertical: list[int], slash: list[int], q_len: int, kv_len: int, causal: bool = True
) -> list[tuple[list[int], list[int]]]:
    """Tiles and columns of every row block; what stands past the counts must be 0."""
    block_count, block_offset, column_count, column_index = (
        minference_ext.convert_vertical_slash_indexes(
            torch.tensor([q_len], dtype=torch.int32),
            torch.tensor([kv_len], dtype=torch.int32),
            torch.tensor([[vertical]], dtype=torch.int32),
            torch.tensor([[slash]], dtype=torch.int32),
            q_len,
            64,
            64,
            causal,
        )
    )
    rows = []
    for m in range(math.ceil(q_len / 64)):
        blocks, columns = int(block_count[0, 0, m]), int(column_count[0, 0, m])
        assert block_offset[0, 0, m, blocks:].eq(0).all()
        assert column_index[0, 0, m, columns:].eq(0).all()
        rows.append(
            (block_offset[0, 0, m, :blocks].tolist(), column_index[0, 0, m, :columns].tolist())
        )
    return rows


def test_golden_lists() -> None:
    assert converted([0, 1, 70, 200, 300], [250, 130, 64, 10, 0], 320, 320) == [
        ([0], []),
        ([0, 64], []),
        ([0, 64, 128], []),
        ([0, 64, 128, 192], []),
        ([6, 126, 192, 256], [0, 1, 70]),
    ]
    assert converted([3, 5, 64, 128, 190], [63, 0], 256, 256) == [
        ([0], []),
        ([1, 65], []),
        ([65, 129], [3, 5, 64]),
        ([129, 193], [3, 5, 64, 128]),
    ]
    # Without offset 0. The original drops columns right of the last tile and adds an empty tile.
    assert converted([0, 100, 250], [128], 256, 256) == [
        ([], [0]),
        ([], [0, 100]),
        ([0], [100]),
        ([64], [0, 250]),
    ]
    assert converted([0, 10, 400, 500], [300, 65, 0], 128, 512) == [
        ([84, 319, 384], [0, 10]),
        ([148, 383, 448], [0, 10]),
    ]
    assert converted([7, 90, 250], [600, 400, 300, 150, 20], 128, 256, causal=False) == [
        ([0, 106, 236], [90]),
        ([20, 170], [7, 90, 250]),
    ]


@st.composite
def line_lists(draw: st.DrawFn) -> tuple[int, int, bool, list[int], list[int]]:
    causal = draw(st.booleans())
    q_len = draw(st.integers(1, 300))
    kv_len = q_len + draw(st.integers(0, 300)) if causal else draw(st.integers(1, 400))
    limit = kv_len if causal else kv_len + q_len
    vertical = draw(st.lists(st.integers(-1, kv_len - 1), max_size=20))
    offset = st.one_of(st.integers(-1, limit - 1), st.integers(0, min(80, limit - 1)))
    return q_len, kv_len, causal, vertical, draw(st.lists(offset, max_size=12))


@given(line_lists())
def test_converted_lists(drawn: tuple[int, int, bool, list[int], list[int]]) -> None:
    """As the greedy merge says, and in any case: every line within its row block is there, nothing
    twice, all ascending and within the keys."""
    q_len, kv_len, causal, vertical, slash = drawn
    before = kv_len - q_len if causal else kv_len
    for m, (tiles, columns) in enumerate(converted(vertical, slash, q_len, kv_len, causal)):
        expected = reference.merged_lists(64 * m, q_len, kv_len, vertical, slash, causal)
        assert (tiles, columns) == expected
        assert all(left + 64 <= right for left, right in itertools.pairwise(tiles))
        assert columns == sorted(set(columns))
        keys = [key for tile in tiles for key in range(tile, tile + 64)]
        assert not set(keys) & set(columns)
        for r in range(64 * m, min(64 * m + 64, q_len)):
            last = min(r + before, kv_len - 1)
            wanted = {v for v in vertical if 0 <= v <= last}
            wanted |= {r + before - s for s in slash if s >= 0 and 0 <= r + before - s <= last}
            assert wanted <= {*keys, *columns}


def test_converted_batch_of_different_lengths() -> None:
    """Every row of a batch has its own lengths; row blocks past them are empty."""
    lengths = [(300, 300), (64, 200), (1, 77), (0, 50)]
    generator = torch.Generator().manual_seed(1)
    vertical = torch.randint(-1, 50, (4, 3, 9), generator=generator, dtype=torch.int32)
    slash = torch.randint(-1, 50, (4, 3, 7), generator=generator, dtype=torch.int32)
    result = minference_ext.convert_vertical_slash_indexes(
        torch.tensor([q_len for q_len, _ in lengths], dtype=torch.int32),
        torch.tensor([kv_len for _, kv_len in lengths], dtype=torch.int32),
        vertical,
        slash,
        330,
    )
    assert [tuple(t.shape) for t in result] == [(4, 3, 6), (4, 3, 6, 7), (4, 3, 6), (4, 3, 6, 9)]
    for b, (q_len, kv_len) in enumerate(lengths):
        for h in range(3):
            for m in range(6):
                tiles: list[int] = []
                columns: list[int] = []
                if 64 * m < q_len:
                    lists = (vertical[b, h].tolist(), slash[b, h].tolist())
                    tiles, columns = reference.merged_lists(64 * m, q_len, kv_len, *lists)
                padded = tiles + [0] * (7 - len(tiles)), columns + [0] * (9 - len(columns))
                assert int(result[0][b, h, m]) == len(tiles)
                assert result[1][b, h, m].tolist() == padded[0]
                assert int(result[2][b, h, m]) == len(columns)
                assert result[3][b, h, m].tolist() == padded[1]


def test_converted_lists_are_what_mode_reference_attends() -> None:
    lines = Lines((0, 3, 70, 200, 260, 299), (40, 90, 131, 220))
    case = Case("regular", "converted", "", (lines,), q_len=300, kv_len=333, mode="reference")
    mask = torch.zeros(300, 333, dtype=torch.bool)
    rows = converted(list(lines.vertical), list(lines.slash), 300, 333)
    for m, (tiles, columns) in enumerate(rows):
        block = mask[64 * m : 64 * m + 64]
        for tile in tiles:
            block[:, tile : tile + 64] = True
        block[:, columns] = True
    mask &= reference.dense_mask(300, 333)
    check.check_weights("converted", mask.expand(1, 2, -1, -1), *check.attended_weights(case))


def test_empty_lists() -> None:
    assert converted([], [], 130, 130) == [([], [])] * 3
    assert converted([-1, -1], [-1], 130, 130) == [([], [])] * 3
