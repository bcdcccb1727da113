"""How a case is called and what its result is held to.

    check_case(case)       values: q, k, v random, against float64 attention over the oracle's mask
    check_attended(case)   pairs: with q = 0 every attended key weighs 1 / count, so one-hot values
                           show which keys a row attended, and how often each was counted

compare() holds every number: its largest error may be twice that of the same masked formula in
plain PyTorch plus a small term for rounding; infinities and NaNs match by position. Outputs are NaN
before the call, so an element that nobody wrote shows.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import minference_ext
import torch
from minference_ext import HeadPattern
from torch import Tensor

from tests import reference
from tests.cases import F8, Case, Layout
from tests.reference import (
    AShape,
    Blocks,
    BlockSparse,
    Dense,
    Lines,
    Pattern,
    TriShape,
    VerticalSlash,
)

# An estimation decides by scores in fp32: data where the best line left out comes closer than this
# (relative) to the worst one taken is drawn again: kernels sum in other orders, and on a GPU with
# approximate exponentials.
MIN_GAP = 1e-4


def rounding_term(dtype: torch.dtype, expected: Tensor) -> float:
    """Absolute error allowed on top of the baseline's: a quarter of the type's spacing at the
    largest expected value; in fp32, where the baseline hardly errs, some of the last bits."""
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return (8.0 if dtype == torch.float32 else 0.25) * torch.finfo(dtype).eps * largest


def compare(name: str, actual: Tensor, expected: Tensor, baseline: Tensor, term: float) -> None:
    """Error of `actual` from `expected` (float64) at most 2 x that of `baseline`, plus `term`."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    got, want, plain = (t.detach().cpu().double() for t in (actual, expected, baseline))
    if not want.numel():
        return
    for kind, got_kind, want_kind in (
        ("nan", got.isnan(), want.isnan()),
        ("+inf", got.isposinf(), want.isposinf()),
        ("-inf", got.isneginf(), want.isneginf()),
    ):
        wrong = got_kind != want_kind
        if wrong.any():
            at = _index_of(wrong.double())
            raise AssertionError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ in being {kind}, "
                f"first at {at}: {got[at].item()}, expected {want[at].item()}"
            )
    finite = want.isfinite()
    error = torch.where(finite, (got - want).abs(), 0.0)
    baseline_error = torch.where(finite & plain.isfinite(), (plain - want).abs(), 0.0)
    allowed = 2 * float(baseline_error.max()) + term
    at = _index_of(error)
    if float(error[at]) > allowed:
        raise AssertionError(
            f"{name}: error {error[at].item():.3e} at {at}, allowed {allowed:.3e} "
            f"(2 x {float(baseline_error.max()):.3e} + {term:.3e}): {got[at].item()}, expected "
            f"{want[at].item()}; {int((error > allowed).sum())} of {error.numel()} elements too far"
        )


def _index_of(values: Tensor) -> tuple[int, ...]:
    """Where the largest value is."""
    return tuple(int(n) for n in torch.unravel_index(values.argmax(), values.shape))


@dataclass(frozen=True)
class Span:
    """One sequence of a case: its rows in the tensors."""

    batch: int
    q: slice
    kv: slice

    @property
    def q_len(self) -> int:
        return int(self.q.stop - self.q.start)

    @property
    def kv_len(self) -> int:
        return int(self.kv.stop - self.kv.start)


def spans(case: Case) -> list[Span]:
    if case.lengths is not None:
        result, q_begin, kv_begin = [], 0, 0
        for q_len, kv_len in case.lengths:
            q_end, kv_end = q_begin + q_len, kv_begin + kv_len
            result.append(Span(0, slice(q_begin, q_end), slice(kv_begin, kv_end)))
            q_begin, kv_begin = q_end, kv_end
        return result
    result = []
    for batch in range(case.batch):
        first = case.first_valid_key[batch] if case.first_valid_key else 0
        first_query = max(0, first - (case.seq_kv - case.seq_q))
        q, kv = slice(first_query, case.seq_q), slice(first, case.seq_kv)
        result.append(Span(batch, q, kv))
    return result


@dataclass(frozen=True)
class Solution:
    """Data of a case and what its op has to give. Packed sequences stand in one batch row."""

    q: Tensor  # [batch, num_heads_q, seq_q, head_dim]
    k: Tensor  # [batch, num_heads_kv, seq_kv, head_dim]
    v: Tensor  # [batch, num_heads_kv, seq_kv, head_dim]
    mask: Tensor  # [batch, num_heads_q, seq_q, seq_kv]
    out: Tensor  # float64, as q
    lse: Tensor  # float64, [batch, num_heads_q, seq_q]
    baseline_out: Tensor
    baseline_lse: Tensor


@functools.lru_cache(maxsize=4)
def solve(case: Case) -> Solution:
    """Random data, drawn until every estimation decides clearly, and the oracle's result: of float8
    that of the values times the scales of their heads."""
    with threads(1):  # matmuls this small only wait for each other's threads
        for seed in range(case.seed, case.seed + 40):
            q, k, v = draw(case, seed)
            values = scaled(case, q, k, v)
            mask, gap = attended_pairs(case, *values[:2])
            if gap >= MIN_GAP:
                return replace(attend(case, *values, mask), q=q, k=k, v=v)
    raise AssertionError(f"{case}: no seed gives an estimation without near ties")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch and the ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v in the case's type."""
    dtype = case.dtype or torch.float32
    generator = torch.Generator().manual_seed(seed)

    def normal(batch: int, num_heads: int, length: int) -> Tensor:
        return torch.randn(batch, num_heads, length, case.head_dim, generator=generator)

    kv_batch = 1 if case.layout == "shared_batch" else case.batch
    q = normal(case.batch, case.num_heads_q, case.seq_q) * case.spread
    k = normal(kv_batch, case.num_heads_kv, case.seq_kv).expand(case.batch, -1, -1, -1)
    v = normal(kv_batch, case.num_heads_kv, case.seq_kv).expand(case.batch, -1, -1, -1)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def head_scales(case: Case) -> dict[str, Tensor]:
    """The scales a float8 case is called with, another one for each head; none for other types."""
    if case.dtype != F8:
        return {}
    return {
        "q_scale": torch.linspace(0.6, 1.5, case.num_heads_q),
        "k_scale": torch.linspace(1.7, 0.8, case.num_heads_kv),
        "v_scale": torch.linspace(0.3, 2.5, case.num_heads_kv),
    }


def scaled(case: Case, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a call with these tensors attends: of float8 the values times the scales, in float64."""
    scales = [scale.double()[:, None, None] for scale in head_scales(case).values()]
    if not scales:
        return q, k, v
    return q.double() * scales[0], k.double() * scales[1], v.double() * scales[2]


def attended_pairs(case: Case, q: Tensor, k: Tensor) -> tuple[Tensor, float]:
    """The oracle's mask of all heads and rows, and its closest decision. Asserts that the case
    leaves pairs out, or that it covers all, as it says."""
    mask = torch.zeros(case.batch, case.num_heads_q, case.seq_q, case.seq_kv, dtype=torch.bool)
    causal_pairs = 0
    smallest_gap = math.inf
    for span in spans(case):
        causal = reference.dense_mask(span.q_len, span.kv_len)
        for head, pattern in enumerate(case.patterns):
            group = head // (case.num_heads_q // case.num_heads_kv)
            head_mask, gap = reference.head_mask(
                pattern,
                q[span.batch, head, span.q],
                k[span.batch, group, span.kv],
                case.scale,
                case.mode,
                case.estimate_every,
            )
            mask[span.batch, head, span.q, span.kv] = head_mask
            smallest_gap = min(smallest_gap, gap)
            causal_pairs += int(causal.sum())
    pairs = int(mask.sum())
    if case.covers_all is not None:
        said = "covers all" if case.covers_all else "leaves pairs out"
        assert (pairs == causal_pairs) == case.covers_all, f"{case} {said}: {pairs} {causal_pairs}"
    return mask, smallest_gap


def attend(case: Case, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Solution:
    """Oracle and baseline over a given mask."""
    plain = reference.attention_low_precision
    if case.dtype == F8:
        plain = reference.attention_float8
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64)
    baseline_out, baseline_lse = out.clone(), lse.clone()
    for span in spans(case):
        for head in range(case.num_heads_q):
            group = head // (case.num_heads_q // case.num_heads_kv)
            rows = (span.batch, head, span.q)
            keys = (span.batch, group, span.kv)
            pairs = mask[span.batch, head, span.q, span.kv]
            data = (q[rows], k[keys], v[keys], pairs, case.scale)
            out[rows], lse[rows] = reference.attention(*data)
            baseline_out[rows], baseline_lse[rows] = plain(*data)
    return Solution(q, k, v, mask, out, lse, baseline_out, baseline_lse)


def laid_out(shape: Sequence[int], layout: Layout, dtype: torch.dtype, device: str) -> Tensor:
    """A view [batch, heads, length, head_dim] in that memory layout; NaN in it and between."""
    batch, heads, length, head_dim = shape
    if layout == "heads_last":
        return _nan((batch, length, heads, head_dim), dtype, device).transpose(1, 2)
    if layout == "every_second":
        return _nan((batch, heads, 2 * length, head_dim), dtype, device)[:, :, ::2]
    if layout == "unaligned":
        return _nan((batch, heads, length, head_dim + 1), dtype, device)[..., 1:]
    if layout == "fused":
        rows = _nan((batch, length, 3, heads, head_dim), dtype, device)
        return rows[:, :, 1].transpose(1, 2)
    return _nan((batch, heads, length, head_dim), dtype, device)


def _nan(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype, device=device)


@dataclass(frozen=True)
class Arguments:
    """Arguments of an op for a case; packed sequences as [tokens, heads, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    keywords: dict[str, Any]  # what all attention ops take, out and lse among them

    @property
    def without_outputs(self) -> dict[str, Any]:
        return {name: value for name, value in self.keywords.items() if name not in ("out", "lse")}


def arguments(case: Case, q: Tensor, k: Tensor, v: Tensor, device: str = "cpu") -> Arguments:
    """q, k and v in the case's memory layout, outputs full of NaN."""

    def place(values: Tensor, layout: Layout) -> Tensor:
        if layout == "shared_batch":
            return values[:1].to(device).expand(values.shape)
        view = laid_out(values.shape, layout, values.dtype, device)
        return view.copy_(values)

    outer: Layout = "contiguous" if case.layout == "shared_batch" else case.layout
    q, k, v = place(q, outer), place(k, case.layout), place(v, case.layout)
    out = laid_out(q.shape, outer, case.out_dtype, device)
    lse = _nan(q.shape[:3], torch.float32, device)
    keywords: dict[str, Any] = {"softmax_scale": case.softmax_scale}
    keywords |= {name: scale.to(device) for name, scale in head_scales(case).items()}
    if case.first_valid_key is not None:
        keywords["first_valid_key"] = torch.tensor(
            case.first_valid_key, dtype=torch.int32, device=device
        )
    if case.lengths is not None:
        q, k, v, out = (t[0].transpose(0, 1) for t in (q, k, v, out))
        lse = lse[0]
        for name, index in (("cu_seqlens_q", 0), ("cu_seqlens_kv", 1)):
            ends = torch.tensor([0, *(lengths[index] for lengths in case.lengths)]).cumsum(0)
            keywords[name] = ends.to(device, torch.int32)
    return Arguments(q, k, v, {**keywords, "out": out, "lse": lse})


def batch_first(case: Case, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Results as [batch, heads, length, ...] also for packed sequences."""
    return (out, lse) if case.lengths is None else (out.transpose(0, 1)[None], lse[None])


def index_lists(lists: Sequence[Sequence[Sequence[int]]], device: str = "cpu") -> Tensor:
    """int32 [sequences, heads, longest], -1 past the end of each list."""
    longest = max((len(entries) for heads in lists for entries in heads), default=0)
    padded = [[[*e, *[-1] * (longest - len(e))] for e in heads] for heads in lists]
    return torch.tensor(padded, dtype=torch.int32, device=device)


def line_indices(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """vertical_idx and slash_idx of a case; no entries for heads of another pattern."""
    per_sequence = [
        [
            pattern.within(span.kv_len) if isinstance(pattern, Lines) else Lines((), ())
            for pattern in case.patterns
        ]
        for span in spans(case)
    ]
    return (
        index_lists([[lines.vertical for lines in heads] for heads in per_sequence], device),
        index_lists([[lines.slash for lines in heads] for heads in per_sequence], device),
    )


def block_indices(case: Case, device: str = "cpu") -> Tensor:
    """block_idx of a case, [sequences, heads, row blocks, longest]."""
    row_blocks = max(math.ceil(span.q_len / 64) for span in spans(case))
    lists = [
        [
            pattern.of_row_block(m, span.kv_len) if isinstance(pattern, Blocks) else ()
            for pattern in case.patterns
            for m in range(row_blocks)
        ]
        for span in spans(case)
    ]
    flat = index_lists(lists, device)
    return flat.view(len(lists), case.num_heads_q, row_blocks, flat.shape[-1])


def head_pattern(pattern: Pattern) -> HeadPattern:
    """The library's description of a pattern."""
    match pattern:
        case Dense():
            return HeadPattern.dense()
        case AShape():
            return HeadPattern.a_shape(pattern.sink, pattern.window)
        case TriShape():
            return HeadPattern.tri_shape(pattern.sink, pattern.window, pattern.last)
        case VerticalSlash():
            return HeadPattern.vertical_slash(pattern.vertical_size, pattern.slash_size)
        case BlockSparse():
            return HeadPattern.block_sparse(pattern.top_k)
        case Lines():
            return HeadPattern.vertical_slash_index()
        case Blocks():
            return HeadPattern.block_index()


def sparse_keywords(case: Case, device: str = "cpu") -> dict[str, Any]:
    """What sparse_attention and plan_stats take for the patterns of a case."""
    keywords: dict[str, Any] = {
        "mode": case.mode,
        "estimate_every": case.estimate_every,
        "dense_fallback": False,
    }
    if any(isinstance(pattern, Lines) for pattern in case.patterns):
        keywords["vertical_idx"], keywords["slash_idx"] = line_indices(case, device)
    if any(isinstance(pattern, Blocks) for pattern in case.patterns):
        keywords["block_idx"] = block_indices(case, device)
    return keywords


def run_sparse_attention(case: Case, given: Arguments) -> tuple[Tensor, Tensor]:
    """The case through the op that takes any pattern."""
    patterns = [head_pattern(pattern) for pattern in case.patterns]
    keywords = sparse_keywords(case, given.q.device.type) | given.keywords
    return minference_ext.sparse_attention(given.q, given.k, given.v, patterns, **keywords)


def run(case: Case, given: Arguments) -> tuple[Tensor, Tensor]:
    """The case through the op of its pattern; heads of different patterns: sparse_attention."""
    qkv, keywords = (given.q, given.k, given.v), given.keywords
    device = given.q.device.type
    kinds = {type(pattern) for pattern in case.heads}
    if kinds == {Lines}:
        lines = line_indices(case, device)
        return minference_ext.vs_attention_with_index(*qkv, *lines, mode=case.mode, **keywords)
    if kinds == {Blocks}:
        blocks = block_indices(case, device)
        return minference_ext.block_sparse_attention_with_index(*qkv, blocks, **keywords)
    if kinds == {VerticalSlash}:
        sizes = [p for p in case.patterns if isinstance(p, VerticalSlash)]
        return minference_ext.vs_attention(
            *qkv,
            [p.vertical_size for p in sizes],
            [p.slash_size for p in sizes],
            mode=case.mode,
            estimate_every=case.estimate_every,
            dense_fallback=False,
            **keywords,
        )
    if len(case.heads) == 1:
        match case.heads[0]:
            case Dense():
                return minference_ext.dense_attention(*qkv, **keywords)
            case AShape() as p:
                return minference_ext.a_shape_attention(*qkv, p.sink, p.window, **keywords)
            case TriShape() as p:
                return minference_ext.tri_shape_attention(
                    *qkv, p.sink, p.window, p.last, **keywords
                )
            case BlockSparse() as p:
                return minference_ext.block_sparse_attention(*qkv, p.top_k, **keywords)
    return run_sparse_attention(case, given)


def check_solution(name: str, case: Case, solution: Solution, out: Tensor, lse: Tensor) -> None:
    """Results of a case against its oracle. The lse has a bound of its own, that of fp32, but for
    float8: Hopper adds its products with 13 bits of mantissa (arXiv 2411.10958)."""
    out, lse = batch_first(case, out, lse)
    assert out.dtype == case.out_dtype, f"{name}: out is {out.dtype}"
    assert lse.dtype == torch.float32, f"{name}: lse is {lse.dtype}"
    out_term = rounding_term(out.dtype, solution.out)
    compare(f"{name}: out", out, solution.out, solution.baseline_out, out_term)
    lse_term = rounding_term(torch.float32, solution.lse) + 1e-6
    if case.dtype == F8:
        lse_term += 2.0**-10 * float(solution.lse.nan_to_num(neginf=0.0).abs().max())
    compare(f"{name}: lse", lse, solution.lse, solution.baseline_lse, lse_term)


def check_case(case: Case, device: str = "cpu", through_sparse_attention: bool = False) -> None:
    """Calls the op on random data, into outputs full of NaN, and holds it to the oracle."""
    case = case.on(device)
    solution = solve(case)
    given = arguments(case, solution.q, solution.k, solution.v, device)
    out, lse = (run_sparse_attention if through_sparse_attention else run)(case, given)
    assert out.data_ptr() == given.keywords["out"].data_ptr(), f"{case}: out is not the one given"
    assert lse.data_ptr() == given.keywords["lse"].data_ptr(), f"{case}: lse is not the one given"
    check_solution(str(case), case, solution, out, lse)


def attended_weights(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Weight of every key in every row [batch, heads, seq_q, seq_kv] and lse, with q = 0. Read from
    one-hot values, head_dim keys per call."""
    case = case.on(device)
    q, k, v = draw(case, case.seed)
    weights = torch.zeros(case.batch, case.num_heads_q, case.seq_q, case.seq_kv)
    lse = torch.empty(0)
    for begin in range(0, max(case.seq_kv, 1), case.head_dim):
        width = min(case.head_dim, case.seq_kv - begin)
        values = torch.zeros(v.shape, dtype=v.dtype)
        values[:, :, begin : begin + width, :width] = torch.eye(width, dtype=v.dtype)
        given = arguments(case, torch.zeros_like(q), k, values, device)
        out, lse = batch_first(case, *run(case, given))
        weights[..., begin : begin + width] = out[..., :width].float().cpu()
    return weights, lse.cpu()


def check_attended(case: Case, device: str = "cpu") -> None:
    """Exactly the oracle's pairs are attended, each counted once."""
    assert not case.is_estimated, "q = 0 leaves nothing to estimate from"
    mask, _ = attended_pairs(case, *draw(case, case.seed)[:2])
    check_weights(str(case), mask, *attended_weights(case, device))


def check_weights(name: str, mask: Tensor, weights: Tensor, lse: Tensor) -> None:
    """Weights read with q = 0 are 1 / count on the mask and 0 beside it, and lse is ln(count)."""
    count = mask.sum(-1, keepdim=True)
    times = weights * count  # how often a key counts, if the row's count is right
    for kind, wrong in (
        ("missing", mask & (times < 0.5)),
        ("attended though the pattern excludes them", ~mask & (weights != 0)),
        ("counted more than once", mask & (times > 1.25)),
        ("weighted wrongly", mask & ((times - 1).abs() > 0.02)),
    ):
        if wrong.any():
            at = _index_of(wrong.double())
            raise AssertionError(
                f"{name}: {int(wrong.sum())} pairs {kind}, first at (batch, head, query, key) {at}:"
                f" weight {weights[at].item()}, {int(count[at[:3]])} keys expected in the row"
            )
    expected = count[..., 0].double().log()
    compare(f"{name}: lse of counts", lse, expected, expected, 2e-5)
