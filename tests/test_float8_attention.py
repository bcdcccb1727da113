"""float8_e4m3fn: values against float64 on a GPU that has a kernel for it, and everywhere what is
refused, in which words, and what fake results promise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import minference_ext as mi
import pytest
import torch
from minference_ext import HeadPattern, autograd
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import cases, check, reference
from tests.cases import BF16, F8, F32, Case
from tests.test_contract import ATTENTION_OPS, LAYOUTS, LINE_OPS, Inputs, call_of, layout_of

SCALES = ("q_scale", "k_scale", "v_scale")
CPU_REFUSES = "has dtype float8_e4m3fn; the CPU backend supports float32, bfloat16 and float16"

# ---- Values --------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused_on_a_cpu(device: str) -> Iterator[None]:
    if device == "cpu":
        with pytest.raises(RuntimeError, match=f"q {CPU_REFUSES}$"):
            yield
    else:
        yield


@pytest.mark.parametrize("case", cases.FLOAT8, ids=str)
def test_values(case: Case, device: str) -> None:
    with refused_on_a_cpu(device):
        check.check_case(case, device)


def test_without_scales(device: str) -> None:
    """None is 1."""
    case = next(case for case in cases.FLOAT8 if case.name == "float8-mixed-cover")
    given = check.arguments(case, *check.draw(case, 0), device)
    rest = {name: value for name, value in given.without_outputs.items() if name not in SCALES}
    ones = {name: torch.ones_like(given.keywords[name]) for name in SCALES}
    with refused_on_a_cpu(device):
        found = check.run(case, replace(given, keywords=rest))
        expected = check.run(case, replace(given, keywords=rest | ones))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def line_inputs(device: str) -> tuple[tuple[Tensor, Tensor], dict[str, Any], tuple[Tensor, Tensor]]:
    """q and k, their scales, and the products of both in float64 on the CPU."""
    case = replace(cases.FLOAT8[0], q_len=300, kv_len=420)
    scales: dict[str, Any] = {name: s.to(device) for name, s in check.head_scales(case).items()}
    scales.pop("v_scale")
    q, k, v = check.draw(case, 3)
    return (q.to(device), k.to(device)), scales, check.scaled(case, q, k, v)[:2]


def test_scores_of_lines(device: str) -> None:
    inputs, scales, (q, k) = line_inputs(device)
    with refused_on_a_cpu(device):
        found = mi.estimate_vs_scores(*inputs, **scales)
        for head in range(q.shape[1]):
            expected = reference.vs_scores(q[0, head], k[0, head // 2], q.shape[-1] ** -0.5)
            for got, want in zip(found, expected, strict=True):
                torch.testing.assert_close(got[0, head].cpu().double(), want, rtol=4e-3, atol=1e-5)


def test_lines_are_those_of_the_scores(device: str) -> None:
    inputs, scales, _ = line_inputs(device)
    with refused_on_a_cpu(device):
        scores = mi.estimate_vs_scores(*inputs, **scales)
        lines = mi.estimate_vs_index(*inputs, 40, 120, **scales)
        for found, score, options in zip(
            lines, scores, ((40, 30, 30), (120, 50, 100)), strict=True
        ):
            for entries, of_head in zip(found[0].tolist(), score[0].cpu(), strict=True):
                expected, _ = reference.select_lines(of_head, *options)
                assert entries == expected + [-1] * (len(entries) - len(expected))


def test_plan_stats(device: str) -> None:
    """As of the values times the scales on the CPU."""
    inputs, scales, (q, k) = line_inputs(device)
    patterns = [HeadPattern.dense(), HeadPattern.a_shape(100, 70)]
    patterns += [HeadPattern.tri_shape(64, 128, 70), HeadPattern.block_sparse(3)]
    with refused_on_a_cpu(device):
        found = mi.plan_stats(*inputs, patterns, **scales)
        expected = mi.plan_stats(q.float(), k.float(), patterns)
        for name in ("is_dense", "computed_pairs", "attended_pairs", "causal_pairs"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


# ---- Promises ------------------------------------------------------------------------------------


def as_float8(layout: Callable[[], Inputs], name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A call of an op with float8 inputs, scales and everything else on no device."""
    op, args, kwargs = call_of(name, layout)
    num_inputs = 3 if name in ATTENTION_OPS else 2
    inputs = [tensor.to(F8) for tensor in args[:num_inputs]]
    for tensor, scale in zip(inputs, SCALES, strict=False):
        kwargs[scale] = torch.ones(tensor.shape[1])
    return op, (*inputs, *args[num_inputs:]), kwargs


def on_meta(values: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), values)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", ATTENTION_OPS)
def test_fake_out_is_bfloat16(name: str, layout: Callable[[], Inputs]) -> None:
    op, args, kwargs = as_float8(layout, name)
    out, lse = op.default(*on_meta(args), **on_meta(kwargs))
    wide, wide_kwargs = call_of(name, layout)[1:]
    expected, expected_lse = op.default(*wide, **wide_kwargs)
    assert layout_of((out, lse)) == layout_of((expected.to(BF16), expected_lse))
    buffers = {"out": out, "lse": lse}
    kwargs = {"slash_mode" if key == "mode" else key: value for key, value in kwargs.items()}
    assert op.out(*on_meta(args), **on_meta(kwargs), **buffers) is None


@pytest.mark.parametrize("name", LINE_OPS)
def test_fake_lines_are_the_same(name: str) -> None:
    op, args, kwargs = as_float8(LAYOUTS[0], name)
    wide, wide_kwargs = call_of(name, LAYOUTS[0])[1:]
    expected = layout_of(op.default(*wide, **wide_kwargs))
    assert layout_of(op.default(*on_meta(args), **on_meta(kwargs))) == expected


def test_export() -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, scale: Tensor, kv_scale: Tensor) -> Any:
            scales: dict[str, Any] = {"q_scale": scale, "k_scale": kv_scale}
            out = q.new_empty(q.shape, dtype=BF16)
            lines = mi.estimate_vs_index(q, k, 3, 4, **scales)
            stats = mi.plan_stats(q, k, [HeadPattern.dense()] * 4, **scales)
            return (
                *mi.dense_attention(q, k, k, **scales, v_scale=kv_scale),
                *mi.vs_attention_with_index(q, k, k, *lines, **scales, v_scale=kv_scale, out=out),
                *mi.estimate_vs_scores(q, k, **scales),
                stats.computed_pairs,
            )

    q, k = torch.zeros(2, 4, 70, 16).to(F8), torch.zeros(2, 2, 70, 16).to(F8)
    seq = torch.export.Dim("seq", min=2, max=4096)
    shapes = ({2: seq}, {2: seq}, None, None)
    inputs = (q, k, torch.ones(4), torch.ones(2))
    program = torch.export.export(Layer(), inputs, dynamic_shapes=shapes)
    outputs = [node.meta["val"] for node in program.graph.output_node().args[0]]
    assert [value.dtype for value in outputs] == [BF16, F32, BF16, F32, F32, F32, torch.int64]


def test_compiled_on_the_cpu_is_refused() -> None:
    q = torch.zeros(1, 2, 8, 16).to(F8)
    compiled = torch.compile(mi.dense_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=f"dense_attention: q {CPU_REFUSES}"):
        compiled(q, q, q, q_scale=torch.ones(2))


def test_scales_have_no_gradient() -> None:
    with FakeTensorMode():
        q = torch.empty(1, 2, 8, 16, dtype=F8)
        scale = torch.ones(2, requires_grad=True)
        out, lse = mi.dense_attention(q, q, q, v_scale=scale)
        assert out.requires_grad
        with pytest.raises(NotImplementedError, match=autograd.MESSAGE.split(";")[0]):
            out.sum().backward()
        with pytest.raises(NotImplementedError, match=r"dense_attention.out.*requires grad"):
            mi.dense_attention(q, q, q, v_scale=scale, out=out.detach(), lse=lse.detach())


# ---- A sentence for every wrong argument ---------------------------------------------------------

Q = torch.zeros(2, 4, 16, 16)
K = torch.zeros(2, 2, 16, 16)
Q8, K8 = Q.to(F8), K.to(F8)
ONES4, ONES2 = torch.ones(4), torch.ones(2)
OUT, LSE = torch.empty(2, 4, 16, 16, dtype=BF16), torch.empty(2, 4, 16)
PATTERNS = [HeadPattern.dense()] * 4


def dense(q: Tensor = Q8, k: Tensor = K8, v: Tensor = K8, **kwargs: Any) -> Any:
    return mi.dense_attention(q, k, v, **kwargs)


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("CPU", lambda: dense(q_scale=ONES4, k_scale=ONES2, v_scale=ONES2), f"q {CPU_REFUSES}$"),
    ("estimate_vs_index", lambda: mi.estimate_vs_index(Q8, K8, 3, 5), CPU_REFUSES),
    ("estimate_vs_scores", lambda: mi.estimate_vs_scores(Q8, K8, q_scale=ONES4), CPU_REFUSES),
    ("plan_stats", lambda: mi.plan_stats(Q8, K8, PATTERNS, k_scale=ONES2), CPU_REFUSES),
    ("attention_kernel", lambda: mi.attention_kernel(Q8, K8, K8), f"^q {CPU_REFUSES}$"),
    ("cpu_kernel_for", lambda: mi.cpu_kernel_for("float8_e4m3fn"), "^dtype is float8_e4m3fn; the"),
    ("other float8", lambda: dense(Q.to(torch.float8_e5m2)), r"q has dtype Float8_e5m2; .* float8"),
    ("k of float8", lambda: dense(Q), r"k has dtype float8_e4m3fn; it must be float32 as q$"),
    ("v of float32", lambda: dense(v=K), r"v has dtype float32; it must be float8_e4m3fn as q$"),
    (
        "out of float8",
        lambda: dense(out=torch.empty_like(Q8), lse=LSE),
        r"out has dtype float8_e4m3fn; it must be bfloat16 for float8_e4m3fn q$",
    ),
    (
        "out of float32",
        lambda: dense(out=OUT.float(), lse=LSE),
        r"out has dtype float32; .* bfloat16",
    ),
    ("out is allowed", lambda: dense(out=OUT, lse=LSE), CPU_REFUSES),
    (
        "q_scale of float32 q",
        lambda: dense(Q, K, K, q_scale=ONES4),
        r"^dense_attention: q_scale is given and q has dtype float32; scales are for float8",
    ),
    (
        "k_scale of bfloat16 q",
        lambda: dense(OUT, OUT, OUT, k_scale=ONES4),
        r"k_scale .* bfloat16; sc",
    ),
    (
        "v_scale of float16 q",
        lambda: dense(*[Q.half()] * 3, v_scale=ONES4),
        r"v_scale .* float16; sc",
    ),
    (
        "scores of float32 q",
        lambda: mi.estimate_vs_scores(Q, K, k_scale=ONES2),
        r"k_scale is given",
    ),
    (
        "q_scale dtype",
        lambda: dense(q_scale=ONES4.double()),
        r"q_scale has dtype float64; .*float32$",
    ),
    ("k_scale dtype", lambda: dense(k_scale=ONES2.bfloat16()), r"k_scale has dtype bfloat16"),
    (
        "q_scale shape",
        lambda: dense(q_scale=ONES2),
        r"q_scale has shape \[2\]; it must be \[4\] \(one entry per head of q\)$",
    ),
    ("k_scale shape", lambda: dense(k_scale=ONES4), r"k_scale has shape \[4\]; it must be \[2\]"),
    (
        "v_scale shape",
        lambda: dense(v_scale=ONES2[:, None]),
        r"v_scale has shape \[2, 1\]; .* \[2\]",
    ),
    (
        "v_scale scalar",
        lambda: dense(v_scale=torch.tensor(1.0)),
        r"v_scale has shape \[\]; .* \[2\]",
    ),
    (
        "q_scale stride",
        lambda: dense(q_scale=torch.ones(1).expand(4)),
        r"q_scale has stride 0 in its",
    ),
    ("k_scale device", lambda: dense(k_scale=ONES2.to("meta")), r"meta.*one device"),
    (
        "q_scale device",
        lambda: mi.estimate_vs_scores(Q8, K8, q_scale=ONES4.to("meta")),
        r"meta.*one device",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_bad_argument(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ATTENTION_OPS)
def test_every_op_refuses_scales_of_float32(name: str) -> None:
    op, args, kwargs = call_of(name, LAYOUTS[0])
    for scale in SCALES:
        with pytest.raises(
            RuntimeError, match=f"^{name}: {scale} is given and q has dtype float32"
        ):
            op.default(*args, **kwargs, **{scale: torch.ones(4)})


def test_attention_kernel_names_a_wrong_dtype() -> None:
    with pytest.raises(ValueError, match=r"k has dtype bfloat16; it must be float8_e4m3fn as q"):
        mi.attention_kernel(Q8, K.bfloat16(), K8)
    with pytest.raises(ValueError, match=r"'float16' or 'float8_e4m3fn'"):
        mi.attention_kernel(Q8, K8, K.double())


def test_every_case_has_its_reason() -> None:
    assert len({case.name for case in cases.FLOAT8}) == len(cases.FLOAT8)
    assert all(case.reason and case.dtype == F8 for case in cases.FLOAT8)


# ---- The checks themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("missing", SCALES)
def test_a_missing_scale_is_noticed(missing: str) -> None:
    case = replace(cases.FLOAT8[0], q_len=130)
    solution = check.solve(case)
    right = solution.baseline_out.to(BF16), solution.baseline_lse.float()
    check.check_solution("right", case, solution, *right)
    values = check.scaled(case, solution.q, solution.k, solution.v)
    raw = (solution.q.double(), solution.k.double(), solution.v.double())
    given = [
        plain if name == missing else value
        for name, plain, value in zip(SCALES, raw, values, strict=True)
    ]
    wrong = check.attend(case, given[0], given[1], given[2], solution.mask)
    with pytest.raises(AssertionError, match=r"wrong: (out|lse)"):
        check.check_solution("wrong", case, solution, wrong.out.to(BF16), wrong.lse.float())


def test_the_oracle_is_that_of_the_values_times_the_scales() -> None:
    case = replace(cases.FLOAT8[0], q_len=5)
    solution, scales = check.solve(case), check.head_scales(case)
    q = solution.q[0, 3].double() * float(scales["q_scale"][3])
    k = solution.k[0, 1].double() * float(scales["k_scale"][1])
    v = solution.v[0, 1].double() * float(scales["v_scale"][1])
    weights = (q[4] @ k.T / math.sqrt(128)).exp()
    assert torch.allclose(solution.out[0, 3, 4], weights @ v / weights.sum())
    assert float(solution.lse[0, 3, 4]) == pytest.approx(float(weights.sum().log()))
