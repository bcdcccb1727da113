"""The ops as PyTorch sees them: schemas, fake results, compile and export, gradients, sentences.

Numbers are tested elsewhere; here every op runs once on tiny tensors and every argument is wrong
once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minference_ext as mi
import pytest
import torch
from minference_ext import HeadPattern, _library, autograd
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

OPS = torch.ops.minference
B, H, H_KV, S, D = 2, 4, 2, 70, 16


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# One layout per row: q, k, v and the keyword arguments that belong to them.
Inputs = tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]


def batched() -> Inputs:
    return (rand(B, H, S, D), rand(B, H, S, D), rand(B, H, S, D)), {}


def grouped_longer_keys() -> Inputs:
    return (rand(B, H, 3, D), rand(B, H_KV, S, D), rand(B, H_KV, S, D)), {}


def strided() -> Inputs:
    """As a model has them: [B, S, H, D] memory, and k and v slices of a wider tensor."""
    kv = rand(B, S, 2 * H_KV, 2 * D)[..., :D]
    q = rand(B, S, H, D).transpose(1, 2)
    return (q, kv[:, :, :H_KV].transpose(1, 2), kv[:, :, H_KV:].transpose(1, 2)), {}


def packed() -> Inputs:
    cu_q, cu_kv = ints(0, 5, 5, 70), ints(0, 9, 12, 80)
    return (rand(70, H, D), rand(80, H_KV, D), rand(80, H_KV, D)), {
        "cu_seqlens_q": cu_q,
        "cu_seqlens_kv": cu_kv,
    }


def padded() -> Inputs:
    qkv, _ = batched()
    return qkv, {"first_valid_key": ints(0, 17)}


LAYOUTS = (batched, grouped_longer_keys, strided, packed, padded)
PATTERNS = [
    HeadPattern.dense(),
    HeadPattern.tri_shape(2, 8, 4),
    HeadPattern.vertical_slash(3, 5),
    HeadPattern.block_sparse(1),
]
ROWS = [number for pattern in PATTERNS for number in pattern.row]


def lists(sequences: int) -> tuple[Tensor, Tensor, Tensor]:
    """vertical_idx, slash_idx and block_idx that fit every layout above."""
    vertical = ints(0, -1, 1).expand(sequences, H, 3).contiguous()
    blocks = ints([0, -1], [0, -1]).expand(sequences, H, 2, 2).contiguous()
    return vertical, ints(0).expand(sequences, H, 1), blocks


def op_calls(sequences: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of every op after q, k, v."""
    vertical, slash, blocks = lists(sequences)
    return {
        "dense_attention": ((), {"softmax_scale": 0.3, "reserved_multiprocessors": 7}),
        "a_shape_attention": ((2, 8), {}),
        "tri_shape_attention": ((2, 8, 3), {}),
        "vs_attention": ((3, [1, 2, 3, 4]), {"mode": "exact", "dense_fallback": False}),
        "vs_attention_with_index": ((vertical, slash), {"mode": "reference"}),
        "block_sparse_attention": ((1,), {}),
        "block_sparse_attention_with_index": ((blocks,), {}),
        "sparse_attention": ((ROWS,), {"estimate_every": 64}),
    }


def line_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments after q, k of the ops that take no v."""
    return {
        "estimate_vs_index": ((3, [1, 2, 3, 60]), {}),
        "estimate_vs_scores": ((), {}),
        "plan_stats": ((ROWS,), {}),
    }


ATTENTION_OPS = tuple(op_calls(1))
LINE_OPS = tuple(line_calls())


def call_of(name: str, layout: Callable[[], Inputs]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    qkv, options = layout()
    calls = {**op_calls(sequences(qkv, options)), **line_calls()}
    args, kwargs = calls[name]
    inputs = qkv if name in ATTENTION_OPS else qkv[:2]
    return getattr(OPS, name), (*inputs, *args), {**options, **kwargs}


def out_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same for the overload `.out`, where `mode` has another name (cpp/torch/schema.cpp)."""
    return {"slash_mode" if name == "mode" else name: value for name, value in kwargs.items()}


def sequences(qkv: tuple[Tensor, Tensor, Tensor], options: dict[str, Tensor]) -> int:
    return options["cu_seqlens_q"].numel() - 1 if "cu_seqlens_q" in options else qkv[0].shape[0]


# ---- Schema, fakes, autograd registration -------------------------------------------------------


def test_every_op_is_tested() -> None:
    names = {
        name.removeprefix("minference::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("minference::")
    }
    expected = {*ATTENTION_OPS, *LINE_OPS, "convert_vertical_slash_indexes"}
    assert names == expected | {f"{name}.out" for name in ATTENTION_OPS}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", [*ATTENTION_OPS, *LINE_OPS])
def test_opcheck(name: str, layout: Callable[[], Inputs]) -> None:
    op, args, kwargs = call_of(name, layout)
    torch.library.opcheck(op.default, args, kwargs)


@pytest.mark.parametrize("layout", [strided, packed], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", ATTENTION_OPS)
def test_opcheck_out(name: str, layout: Callable[[], Inputs]) -> None:
    op, args, kwargs = call_of(name, layout)
    out, lse = op.default(*args, **kwargs)
    buffers = {"out": torch.empty_like(out), "lse": torch.empty_like(lse)}
    torch.library.opcheck(op.out, args, {**out_kwargs(kwargs), **buffers})


def convert_arguments() -> tuple[Any, ...]:
    vertical, slash, _ = lists(B)
    return ints(70, 10), ints(70, 70), vertical, slash.contiguous(), 70


def test_opcheck_convert() -> None:
    torch.library.opcheck(OPS.convert_vertical_slash_indexes.default, convert_arguments())


@pytest.mark.parametrize("layout", [batched, packed], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", ATTENTION_OPS)
def test_out_gives_the_same(name: str, layout: Callable[[], Inputs]) -> None:
    op, args, kwargs = call_of(name, layout)
    out, lse = op.default(*args, **kwargs)
    wide = torch.full((*out.shape[:-1], 2 * D), torch.nan)
    strided_lse = torch.full((*lse.shape, 2), torch.nan)[..., 0]
    assert op.out(*args, **out_kwargs(kwargs), out=wide[..., :D], lse=strided_lse) is None
    assert torch.equal(wide[..., :D], out)
    assert torch.equal(strided_lse, lse)
    assert wide[..., D:].isnan().all()


@pytest.mark.parametrize("name", ATTENTION_OPS)
def test_reserved_multiprocessors_are_no_matter_of_a_cpu(name: str) -> None:
    op, args, kwargs = call_of(name, batched)
    expected = op.default(*args, **kwargs)
    kwargs["reserved_multiprocessors"] = 2**31 - 1
    assert_same(op.default(*args, **kwargs), expected)
    buffers = {"out": torch.empty_like(expected[0]), "lse": torch.empty_like(expected[1])}
    op.out(*args, **out_kwargs(kwargs), **buffers)
    assert_same(tuple(buffers.values()), expected)
    qkv, rest = args[:3], list(args[3:])
    if name == "sparse_attention":
        rest = [PATTERNS]
    assert_same(getattr(mi, name)(*qkv, *rest, **kwargs), expected)


def layout_of(results: Any) -> list[tuple[Any, ...]]:
    tensors = (results,) if isinstance(results, Tensor) else results
    return [(t.dtype, t.shape, t.stride()) for t in tensors]


SHAPES = [(1, 1, 1, 8), (2, 1, 5, 16), (1, 4, 1, 16), (3, 2, 70, 24), (2, 4, 0, 8), (0, 4, 5, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fake_is_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q = rand(*shape, dtype=dtype)
    batch, heads, seq, dim = shape
    real = OPS.a_shape_attention(q, q, q, 1, 1)
    assert layout_of(real) == layout_of(OPS.a_shape_attention(*[q.to("meta")] * 3, 1, 1))
    expected_out = torch.empty(batch, seq, heads, dim, dtype=dtype).transpose(1, 2)
    assert layout_of(real) == layout_of((expected_out, torch.empty(batch, heads, seq)))


def test_fake_lists_are_exact() -> None:
    for length in (20, 40, 300):
        q = rand(1, 2, length, 8)
        for sizes in ((1, 1), (35, [51, 52]), (1000, 1000)):
            with FakeTensorMode(allow_non_fake_inputs=True):
                fake = OPS.estimate_vs_index(
                    q, q, *[[s] if isinstance(s, int) else s for s in sizes]
                )
            assert layout_of(OPS.estimate_vs_index(q, q, *sizes)) == layout_of(fake)


def test_out_is_no_view() -> None:
    out, _ = mi.dense_attention(*batched()[0])
    assert not out._is_view()


# ---- torch.compile and torch.export -------------------------------------------------------------


def layer(q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> tuple[Tensor, ...]:
    """Every Python function on one input."""
    stats = mi.plan_stats(q, k, PATTERNS)
    return (
        *mi.dense_attention(q, k, v, softmax_scale=scale, reserved_multiprocessors=size),
        *mi.a_shape_attention(q, k, v, size, 2 * size),
        *mi.tri_shape_attention(q, k, v, 1, size, 2, out=q.new_empty(q.shape)),
        *mi.vs_attention(q, k, v, size, [size, 2, 3, 4], mode="exact"),
        *mi.vs_attention(q, k, v, 3, 4, mode="exact", out=q.new_empty(q.shape)),
        *mi.block_sparse_attention(q, k, v, size),
        *mi.sparse_attention(q, k, v, PATTERNS, mode="exact"),
        *mi.vs_attention_with_index(q, k, v, *mi.estimate_vs_index(q, k, size, size)),
        *mi.estimate_vs_scores(q, k),
        stats.computed_pairs,
    )


def assert_same(actual: Any, expected: Any) -> None:
    assert layout_of(actual) == layout_of(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    k, v = rand(B, H_KV, 80, D), rand(B, H_KV, 80, D)
    with torch.no_grad():
        for seq, size in ((70, 3), (33, 3), (80, 5)):
            q = rand(B, seq, H, D).transpose(1, 2)
            assert_same(compiled(q, k, v, size, 0.25), layer(q, k, v, size, 0.25))


def test_compile_packed() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mi.vs_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (9, 20):
        q, cu = rand(tokens, H, D), ints(0, 4, tokens)
        options: dict[str, Any] = {"cu_seqlens_q": cu, "cu_seqlens_kv": cu}
        assert_same(compiled(q, q, q, 2, 3, **options), mi.vs_attention(q, q, q, 2, 3, **options))


class Layer(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return layer(q, k, v, 3, 0.25)


def test_export() -> None:
    seq = torch.export.Dim("seq", min=2, max=4096)
    q, k = rand(B, H, 70, D), rand(B, H_KV, 70, D)
    program = torch.export.export(Layer(), (q, k, k), dynamic_shapes=({2: seq},) * 3)
    q, k = rand(B, H, 33, D), rand(B, H_KV, 33, D)
    assert_same(program.module()(q, k, k), Layer()(q, k, k))


# ---- Gradients ----------------------------------------------------------------------------------

MESSAGE = re.escape(autograd.MESSAGE)


@pytest.mark.parametrize("name", [*ATTENTION_OPS, "estimate_vs_scores"])
def test_backward_raises(name: str) -> None:
    op, args, kwargs = call_of(name, batched)
    args[0].requires_grad_()
    results = op.default(*args, **kwargs)
    assert all(result.requires_grad for result in results)
    for result in results:
        with pytest.raises(NotImplementedError, match=MESSAGE):
            result.sum().backward(retain_graph=True)
    with torch.no_grad():
        assert not any(result.requires_grad for result in op.default(*args, **kwargs))


def test_integer_results_need_no_gradient() -> None:
    q = rand(1, 1, 8, 8).requires_grad_()
    assert not any(index.requires_grad for index in mi.estimate_vs_index(q, q, 1, 1))
    assert not mi.plan_stats(q, q, [HeadPattern.dense()]).is_dense.requires_grad


def test_out_refuses_gradients() -> None:
    q, k, v = batched()[0]
    out = torch.empty_like(q)
    with pytest.raises(NotImplementedError, match=f"dense_attention.out.*{MESSAGE}"):
        mi.dense_attention(q, k.requires_grad_(), v, out=out)
    with torch.no_grad():
        assert mi.dense_attention(q, k, v, out=out)[0] is out


# ---- A sentence for every wrong argument --------------------------------------------------------

N = 16  # queries and keys of the bad calls
Q = rand(B, H, N, D)
IDX = torch.zeros(B, H, 3, dtype=torch.int32)
BLOCK_IDX = torch.zeros(B, H, 1, 2, dtype=torch.int32)
T = rand(N, H, D)
CU = ints(0, 6, N)
FIRST = ints(0, 3)


def dense(q: Tensor = Q, k: Tensor | None = None, v: Tensor | None = None, **kwargs: Any) -> Any:
    return mi.dense_attention(q, q if k is None else k, q if v is None else v, **kwargs)


def varlen(cu_q: Tensor | None = CU, cu_kv: Tensor | None = CU, **kwargs: Any) -> Any:
    return dense(T, cu_seqlens_q=cu_q, cu_seqlens_kv=cu_kv, **kwargs)


def vs(vertical_size: Any = 1, slash_size: Any = 1, **kwargs: Any) -> Any:
    return mi.vs_attention(Q, Q, Q, vertical_size, slash_size, **kwargs)


def vs_index(vertical_idx: Tensor = IDX, slash_idx: Tensor = IDX) -> Any:
    return mi.vs_attention_with_index(Q, Q, Q, vertical_idx, slash_idx)


def blocks(block_idx: Tensor) -> Any:
    return mi.block_sparse_attention_with_index(Q, Q, Q, block_idx)


def layer_of(*patterns: HeadPattern, **kwargs: Any) -> Any:
    return mi.sparse_attention(Q, Q, Q, patterns, **kwargs)


def convert(
    q_seqlens: Tensor = FIRST, indexes: Tensor = IDX, size: int = N, block: int = 64
) -> Any:
    return mi.convert_vertical_slash_indexes(q_seqlens, FIRST, indexes, IDX, size, block)


def changed(tensor: Tensor, value: int) -> Tensor:
    copy = tensor.clone()
    copy.view(-1)[-1] = value
    return copy


DENSE = HeadPattern.dense()
WIDE = rand(B, H, N, 2 * D)
OUT, LSE = torch.empty_like(Q), torch.empty(B, H, N)

BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("q rank", lambda: dense(Q[0]), r"dense_attention: q has 3 dimensions, \[4, 16, 16\]; .*4"),
    ("k rank", lambda: dense(k=Q[0]), r"k has 3 dimensions"),
    ("v rank", lambda: dense(v=Q[None]), r"v has 5 dimensions"),
    ("packed rank", lambda: dense(cu_seqlens_q=CU, cu_seqlens_kv=CU), r"q has 4 dimensions.* 3"),
    ("q dtype", lambda: dense(Q.double()), r"q has dtype float64; float32, bfloat16, float16 and"),
    ("k dtype", lambda: dense(k=Q.bfloat16()), r"\bk\b.*(bfloat16|dtype)"),
    ("v dtype", lambda: dense(v=Q.half()), r"\bv\b.*(float16|dtype)"),
    ("head_dim 12", lambda: dense(rand(1, 1, 4, 12)), r"head_dim 12"),
    ("head_dim 264", lambda: dense(rand(1, 1, 4, 264)), r"head_dim 264"),
    ("k head_dim", lambda: dense(k=rand(B, H, N, 8)), r"\bk\b.*\b8\b"),
    ("k heads", lambda: dense(k=Q[:, :3], v=Q[:, :3]), r"\bk\b.*\b3\b"),
    ("k batch", lambda: dense(k=Q[:1], v=Q[:1]), r"\bk\b.*\b1\b"),
    ("v length", lambda: dense(v=Q[:, :, :7]), r"\bv\b.*\b7\b"),
    ("v heads", lambda: dense(v=Q[:, :2]), r"\bv\b.*\b2\b"),
    ("q stride", lambda: dense(WIDE[..., ::2]), r"q has stride 2 in its last axis; .*contiguous"),
    ("v stride", lambda: dense(v=Q.transpose(2, 3)), r"v has stride 16"),
    ("q longer than k", lambda: dense(k=Q[:, :, :9], v=Q[:, :, :9]), r"\bq.*\b16\b.*\b9\b"),
    ("k device", lambda: dense(k=Q.to("meta")), r"meta.*one device"),
    ("first_valid_key device", lambda: dense(first_valid_key=FIRST.to("meta")), r"meta"),
    ("sink", lambda: mi.a_shape_attention(Q, Q, Q, -1, 1), r"sink.*-1"),
    ("window", lambda: mi.a_shape_attention(Q, Q, Q, 1, -2), r"window.*-2"),
    ("last", lambda: mi.tri_shape_attention(Q, Q, Q, 1, 1, -3), r"last.*-3"),
    ("vertical_size", lambda: vs(-1), r"vertical_size.*-1"),
    ("slash_size", lambda: vs(1, [1, 1, -5, 1]), r"slash_size.*-5"),
    ("vertical_size count", lambda: vs([1, 2]), r"vertical_size has 2 entries; .*\(4\)"),
    ("slash_size empty", lambda: vs(1, []), r"slash_size has 0 entries"),
    ("mode", lambda: vs(mode="fast"), r"mode is 'fast'; .*'cover', 'exact' or 'reference'"),
    ("estimate_every", lambda: vs(estimate_every=100), r"estimate_every.*100"),
    ("estimate_every < 0", lambda: vs(estimate_every=-64), r"estimate_every.*-64"),
    ("top_k", lambda: mi.block_sparse_attention(Q, Q, Q, 0), r"top_k.*\b0\b"),
    ("scale 0", lambda: dense(softmax_scale=0.0), r"softmax_scale is 0; .*finite and > 0"),
    ("scale -1", lambda: dense(softmax_scale=-1.0), r"softmax_scale is -1"),
    ("scale nan", lambda: dense(softmax_scale=float("nan")), r"softmax_scale is nan"),
    ("scale inf", lambda: dense(softmax_scale=float("inf")), r"softmax_scale is inf"),
    (
        "reserved < 0",
        lambda: dense(reserved_multiprocessors=-1),
        r"^dense_attention: reserved_multiprocessors is -1; it must be >= 0$",
    ),
    ("reserved 2^31", lambda: vs(reserved_multiprocessors=2**31), r"reserved_\w+ is 2147483648;"),
    ("vertical_idx value", lambda: vs_index(changed(IDX, N)), r"vertical_idx.*\b16\b"),
    ("slash_idx value", lambda: vs_index(IDX, changed(IDX, -2)), r"slash_idx.*-2"),
    ("vertical_idx dtype", lambda: vs_index(IDX.long()), r"vertical_idx has dtype int64; .*int32"),
    ("slash_idx rank", lambda: vs_index(IDX, IDX[0]), r"slash_idx has 2 dimensions"),
    ("vertical_idx heads", lambda: vs_index(IDX[:, :2]), r"vertical_idx.*\b2\b"),
    ("slash_idx batch", lambda: vs_index(IDX, IDX[:1]), r"slash_idx.*\b1\b"),
    ("slash_idx stride", lambda: vs_index(IDX, IDX.mT.contiguous().mT), r"slash_idx has stride 4"),
    ("block_idx value", lambda: blocks(changed(BLOCK_IDX, 1)), r"block_idx.*\b1\b"),
    ("block_idx rank", lambda: blocks(IDX), r"block_idx has 3 dimensions"),
    ("block_idx dtype", lambda: blocks(BLOCK_IDX.float()), r"block_idx has dtype float32"),
    ("block_idx rows", lambda: blocks(BLOCK_IDX[:, :, :0]), r"block_idx.*\b0\b"),
    ("patterns count", lambda: layer_of(DENSE), r"head_patterns has 4 ints; .*\(16\)"),
    ("pattern size", lambda: layer_of(*[HeadPattern.a_shape(1, -5)] * H), r"-5"),
    ("pattern kind", lambda: OPS.sparse_attention(Q, Q, Q, [9, 0, 0, 0] * H), r"kind.*\b9\b"),
    ("pattern top_k", lambda: layer_of(*[HeadPattern.block_sparse(0)] * H), r"top_k.*\b0\b"),
    ("no lines", lambda: layer_of(*[HeadPattern.vertical_slash_index()] * H), r"vertical_idx"),
    ("no blocks", lambda: layer_of(*[HeadPattern.block_index()] * H), r"block_idx"),
    ("stats mode", lambda: mi.plan_stats(Q, Q, [DENSE] * H, mode="x"), r"plan_stats: mode"),  # type: ignore[arg-type]
    ("cu_seqlens_q start", lambda: varlen(ints(1, 6, N)), r"cu_seqlens_q.*\b1\b"),
    ("cu_seqlens_kv order", lambda: varlen(CU, ints(0, 17, N)), r"cu_seqlens_kv.*\b17\b"),
    ("cu_seqlens_q end", lambda: varlen(ints(0, 6, 15)), r"cu_seqlens_q.*\b15\b"),
    ("cu_seqlens_kv end", lambda: varlen(CU, ints(0, 6, 17)), r"cu_seqlens_kv.*\b17\b"),
    ("cu_seqlens_kv missing", lambda: varlen(CU, None), r"cu_seqlens_kv is missing; .*together"),
    ("cu_seqlens_q missing", lambda: varlen(None, CU), r"cu_seqlens_q is missing"),
    ("cu_seqlens_q dtype", lambda: varlen(CU.long()), r"cu_seqlens_q has dtype int64; .*int32"),
    (
        "cu_seqlens_kv count",
        lambda: varlen(CU, ints(0, N)),
        r"cu_seqlens_kv has shape \[2\].*\[3\]",
    ),
    ("cu_seqlens_q empty", lambda: varlen(CU[:0], CU[:0]), r"cu_seqlens_q is empty"),
    ("longer sequence", lambda: varlen(ints(0, 9, N), CU), r"\b9\b"),
    (
        "first_valid_key dtype",
        lambda: dense(first_valid_key=FIRST.long()),
        r"first_valid_key.*int64",
    ),
    ("first_valid_key count", lambda: dense(first_valid_key=CU), r"first_valid_key.*\[3\].*\[2\]"),
    ("first_valid_key < 0", lambda: dense(first_valid_key=ints(0, -1)), r"first_valid_key.*-1"),
    ("first_valid_key big", lambda: dense(first_valid_key=ints(0, 17)), r"first_valid_key.*\b17\b"),
    ("packed padding", lambda: varlen(first_valid_key=FIRST), r"first_valid_key.*cu_seqlens"),
    ("out shape", lambda: dense(out=OUT[:, :, :5], lse=LSE), r"\bout\b.*\b5\b"),
    ("out dtype", lambda: dense(out=OUT.bfloat16(), lse=LSE), r"\bout\b.*(bfloat16|dtype)"),
    ("out rank", lambda: dense(out=OUT[0], lse=LSE), r"out has 3 dimensions"),
    ("out stride", lambda: dense(out=WIDE[..., ::2], lse=LSE), r"out has stride 2"),
    ("lse shape", lambda: dense(out=OUT, lse=LSE[:, :, :5]), r"lse has shape \[2, 4, 5\]"),
    ("lse dtype", lambda: dense(out=OUT, lse=LSE.double()), r"lse has dtype float64; .*float32"),
    ("block size", lambda: convert(block=32), r"block_size_M.*32 and 64; .*64"),
    ("context_size", lambda: convert(size=-1), r"context_size is -1"),
    ("q_seqlens count", lambda: convert(q_seqlens=CU), r"q_seqlens has shape \[3\].*\[2\]"),
    ("q_seqlens value", lambda: convert(q_seqlens=ints(0, 65)), r"q_seqlens.*\b65\b"),
    ("indexes heads", lambda: convert(indexes=IDX[:, :2]), r"slash_i.*\b4\b"),
    ("indexes dtype", lambda: convert(indexes=IDX.long()), r"vertical_indexes has dtype int64"),
]


@pytest.mark.parametrize(("call", "sentence"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_bad_argument(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert ".cpp" not in text


def test_sentence_names_the_op() -> None:
    with pytest.raises(RuntimeError, match=r"^vs_attention: mode is"):
        vs(mode="")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: HeadPattern("diagonal"), r"kind is 'diagonal'; .*vertical_slash"),  # type: ignore[arg-type]
        (lambda: HeadPattern("a_shape", (1,)), r"sizes of a_shape is \(1,\); .*\(sink, window\)"),
        (lambda: mi.predict(HeadPattern.a_shape(1, 1), 9, 5), r"q_len.*\b9\b"),
        (lambda: mi.cpu_kernel_for("float64"), r"dtype is 'float64'; .*'bfloat16'"),
        (lambda: mi.attention_kernel(Q[0, 0], Q, Q), r"q has 2 dimensions; .* 4: .* 3 if packed"),
        (lambda: mi.attention_kernel(Q, Q, Q[0]), r"v has 3 dimensions"),
        (lambda: mi.attention_kernel(Q, Q.to("meta"), Q), r"k is on device meta .* one device"),
        (lambda: mi.attention_kernel(*[Q.to("meta")] * 3), r"q is on device meta; .*CUDA"),
        (lambda: mi.attention_kernel(Q, Q.double(), Q), r"k has dtype 'float64'; .*'bfloat16'"),
        (lambda: mi.attention_kernel(Q, Q, Q.half()), r"v has dtype float16; .*float32 as q"),
        (lambda: mi.attention_kernel(Q, Q[:, :3], Q[:, :3]), r"\bk\b.*\b3\b"),
        (lambda: mi.attention_kernel(Q[:, :0], Q, Q), r"q has 0 heads"),
        (lambda: mi.attention_kernel(WIDE[..., ::2], Q, Q), r"q has stride 2"),
        (
            lambda: mi.attention_kernel(Q, Q, Q, reserved_multiprocessors=-2),
            r"reserved_multiprocessors is -2; it must be >= 0",
        ),
    ],
)
def test_bad_value(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


# ---- Package ------------------------------------------------------------------------------------


def test_capabilities() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mi.__version__)
    kernels = dict(mi.cpu_kernels())
    for dtype in ("float32", "bfloat16", "float16"):
        assert kernels[mi.cpu_kernel_for(dtype)]
    assert mi.has_cuda() in (False, True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_kernel(dtype: torch.dtype, layout: Callable[[], Inputs]) -> None:
    qkv = [tensor.to(dtype) for tensor in layout()[0]]
    name = mi.cpu_kernel_for(str(dtype).removeprefix("torch."))
    reason = "the best of the CPU kernels that this machine can run"
    expected = mi.KernelInfo(name, 64, 32, 0, reason)
    assert mi.attention_kernel(*qkv) == expected
    assert mi.attention_kernel(*qkv, reserved_multiprocessors=3) == expected


def test_attention_kernel_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "portable")
    info = mi.attention_kernel(Q, Q, Q)
    assert (info.name, info.reason) == ("portable", "forced by MINFERENCE_CPU_KERNEL=portable")
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "no_such_kernel")
    with pytest.raises(ValueError, match="MINFERENCE_CPU_KERNEL is no_such_kernel"):
        mi.attention_kernel(Q, Q, Q)


def test_predict() -> None:
    few, dense_head = HeadPattern.vertical_slash(100, 200), HeadPattern.dense()
    assert mi.predict(dense_head, 1000, 1000).is_dense
    assert mi.predict(few, 100_000, 100_000).cost_dense > 0


def test_every_name_exists() -> None:
    assert [name for name in mi.__all__ if not hasattr(mi, name)] == []


def test_missing_library(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"libminference_torch.so is missing"):
        _library.load(tmp_path / "libminference_torch.so")


def test_second_copy_of_the_library(tmp_path: Path) -> None:
    copy = tmp_path / "libminference_torch.so"
    shutil.copy(_library.PATH, copy)
    with pytest.raises(ImportError, match=r"already registered"):
        _library.load(copy)
    _library.load()


def test_import_is_light() -> None:
    program = "import sys, minference_ext; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
