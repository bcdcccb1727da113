"""Runs torch.ops.minference on CUDA tensors of a torch without CUDA (fake_torch_cuda.cpp), in the
emulator: `python ops_on_cuda.py libtorch_cuda.so`. Prints one line per check, raises where one
fails.

The same calls on CPU tensors are what results are held to, and the float64 oracle of check.py;
float8, which the CPU has not, is held to the oracle and to calls on its values times their scales.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import minference_ext as mi
import minference_ext.transformers as integration
import pytest
import torch
from minference_ext.methods import Layer, LayerIndex
from minference_ext.observations.attended import AttendedPairs
from minference_ext.patterns import flatten
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import check
from tests.cases import BF16, F8, F16, MODES, Case, dtype_name
from tests.check import Arguments, Solution
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
from tests.tiny_llama import HEADS, KV_HEADS, VOCABULARY, padded, tiny, tokens

torch.ops.load_library(sys.argv[1])
torch.cuda._lazy_init = lambda: None  # refuses to make CUDA tensors in a torch without CUDA
torch.set_num_threads(1)  # tensors this small only wait for each other's threads
fake = torch.ops.fake_cuda
ops = torch.ops.minference

check.MIN_GAP = 4e-4  # what rounding may do to a score in bfloat16: tests/cpp/attention_check.h


class Calls(TorchDispatchMode):
    """Counts the calls of our ops that have CUDA tensors. Each asks for torch's stream once."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cuda: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op.namespace != "minference":
            return op(*args, **kwargs)
        values = (*args, *kwargs.values())
        is_cuda = any(isinstance(value, Tensor) and value.is_cuda for value in values)
        lookups = fake.stream_lookups()
        result = op(*args, **kwargs)
        assert fake.stream_lookups() == lookups + is_cuda, f"{op}: asked for the stream"
        self.on_cuda[op.name().removeprefix("minference::")] += is_cuda
        return result


# ---- Attention -----------------------------------------------------------------------------------

_LINES = Lines((0, 9, 100, 129), (0, 64, 90))
_ROWS = Blocks(((0,), (1, 0), (2, 1), (0, 3)))
PATTERNS: dict[str, tuple[Pattern, ...]] = {
    "dense": (Dense(),),
    "a_shape": (AShape(3, 70),),
    "tri_shape": (TriShape(2, 65, 30),),
    "vs": (VerticalSlash(40, 105), VerticalSlash(60, 120)),
    "lines": (_LINES, Lines((5,), ()), Lines((), (0, 1, 130))),
    "top_k": (BlockSparse(1),),
    "blocks": (_ROWS,),
    "mixed": (
        *(Dense(), AShape(3, 70), TriShape(2, 65, 30), VerticalSlash(40, 105)),
        *(_LINES, BlockSparse(2), _ROWS, Lines((5,), ())),
    ),
}
# Every head_dim that kernels are compiled for, with sequences and a memory layout of its own.
SHAPES: tuple[dict[str, Any], ...] = (
    {
        "head_dim": 64,
        "batch": 2,
        "q_len": 200,
        "kv_len": 200,
        "first_valid_key": (0, 70),
        "layout": "heads_last",
    },
    {"head_dim": 96, "lengths": ((65, 65), (0, 7), (70, 210)), "layout": "every_second"},
    {"head_dim": 128, "q_len": 90, "kv_len": 233, "layout": "fused"},
    {"head_dim": 256, "q_len": 150, "layout": "unaligned", "softmax_scale": 0.1},
)


def attention_cases() -> Iterator[Case]:
    """Each op on every shape, half of them in each type, all modes of those that have one."""
    number = 0
    for name, heads in PATTERNS.items():
        has_lines = any(isinstance(pattern, Lines | VerticalSlash) for pattern in heads)
        for mode in MODES if has_lines else MODES[:1]:
            for shape in SHAPES:
                dtype = (BF16, F16)[(number // 4 + number) % 2]
                title = f"{name}, {mode}, head_dim {shape['head_dim']}, {dtype_name(dtype)}"
                num_heads = max(4, len(heads))
                case = Case("regular", title, "", heads, num_heads_q=num_heads, num_heads_kv=2)
                yield replace(case, dtype=dtype, mode=mode, covers_all=None, **shape)
                number += 1
    vs = Case("regular", "vs, estimate_every 64", "", PATTERNS["vs"], q_len=190, dtype=BF16)
    yield replace(vs, estimate_every=64, kv_len=260, covers_all=None)
    few = Case("regular", "few queries: keys in parts", "", PATTERNS["dense"], q_len=70, dtype=F16)
    yield replace(few, kv_len=1100, num_heads_q=4, covers_all=None)


def float8_cases() -> Iterator[Case]:
    """Each op once. Rows of float8 have to be aligned."""
    for number, (name, heads) in enumerate(PATTERNS.items()):
        shape = SHAPES[number % 3]
        title = f"{name}, head_dim {shape['head_dim']}, {dtype_name(F8)}"
        num_heads = max(4, len(heads))
        case = Case("regular", title, "", heads, num_heads_q=num_heads, num_heads_kv=2, dtype=F8)
        yield replace(case, covers_all=None, **shape)


def allowance(case: Case, solution: Solution) -> Tensor:
    """How far each element of out may be from the truth: tests/cpp/attention_check.h."""
    group = case.num_heads_q // case.num_heads_kv
    q = solution.q.double()
    k, v = (t.double().repeat_interleave(group, 1) for t in (solution.k, solution.v))
    p = (q @ k.mT * case.scale - solution.lse[..., None]).exp()
    p = torch.where(solution.mask, p, 0.0)
    spread, weight = (p.square() @ v.square()).sqrt(), p @ v.abs()
    unit, smallest = (2.0**-9, 0.0) if case.dtype == BF16 else (2.0**-11, 2.0**-24)
    allowed = 2 * unit * solution.out.abs() + 8 * unit * spread + 2e-5 * weight + smallest + 1e-7
    return torch.where(solution.mask.any(-1, keepdim=True), allowed, 0.0)


def assert_near(name: str, found: Tensor, expected: Tensor, allowed: Tensor | float) -> None:
    """Elements at most `allowed` apart; infinities by position."""
    found, expected = found.cpu().double(), expected.cpu().double()
    is_near = (found == expected) | ((found - expected).abs() <= allowed)
    at = int((~is_near).flatten().int().argmax())
    assert bool(is_near.all()), (
        f"{name}: {int((~is_near).sum())} of {is_near.numel()} elements differ, the first "
        f"{found.flatten()[at].item()} on CUDA and {expected.flatten()[at].item()} on the CPU"
    )


def check_attention(case: Case) -> None:
    """Both overloads against the oracle and against the CPU."""
    solution = check.solve(case)
    inputs = (solution.q, solution.k, solution.v)
    given = check.arguments(case, *inputs, "cuda")
    out, lse = check.run(case, given)
    assert out.data_ptr() == given.keywords["out"].data_ptr(), f"{case}: out is not the one given"
    check.check_solution(str(case), case, solution, out, lse)

    cpu = check.arguments(case, *inputs)
    cpu_out, cpu_lse = check.batch_first(case, *check.run(case, cpu))
    cuda_out, cuda_lse = check.batch_first(case, out, lse)
    # Each is that near to the truth.
    assert_near(f"{case}: out", cuda_out, cpu_out, 2 * allowance(case, solution))
    lse_tolerance = 1e-4 if case.dtype == BF16 else 2e-5
    finite = cpu_lse.double().nan_to_num(neginf=0.0).abs()
    assert_near(f"{case}: lse", cuda_lse, cpu_lse, 2 * lse_tolerance * finite.clamp(min=1.0))

    expected = check.run(case, Arguments(cpu.q, cpu.k, cpu.v, cpu.without_outputs))
    check_allocated(case, given, (out, lse), expected)


def check_allocated(
    case: Case, given: Arguments, written: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> None:
    """The overload that allocates gives what the other wrote, laid out as `expected`."""
    allocated = check.run(case, Arguments(given.q, given.k, given.v, given.without_outputs))
    for found, other, like in zip(allocated, written, expected, strict=True):
        assert found.device == given.q.device
        assert (found.dtype, found.shape, found.stride()) == (like.dtype, like.shape, like.stride())
        assert torch.equal(found, other), f"{case}: the overloads differ"


def check_float8(case: Case) -> None:
    """Both overloads against the oracle, laid out as the fake kernels say."""
    solution = check.solve(case)
    inputs = (solution.q, solution.k, solution.v)
    given = check.arguments(case, *inputs, "cuda")
    out, lse = check.run(case, given)
    check.check_solution(str(case), case, solution, out, lse)
    cpu = check.arguments(case, *inputs)
    keywords = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in cpu.without_outputs.items()
    }
    q, k, v = (t.to("meta") for t in (cpu.q, cpu.k, cpu.v))
    check_allocated(case, given, (out, lse), check.run(case, Arguments(q, k, v, keywords)))


def check_entries_out_of_range() -> None:
    """The host cannot read lists on a GPU: entries that no key belongs to are ignored."""
    heads: tuple[Pattern, ...] = (Lines((0, 9, 100), (0, 64)), Blocks(((0,), (1, 0), (2,))))
    case = Case("corner", "", "", heads, q_len=150, dtype=BF16, mode="cover")
    given = check.arguments(case, *check.draw(case, 0), "cuda")
    qkv = (given.q, given.k, given.v)
    (vertical, slash), blocks = check.line_indices(case, "cuda"), check.block_indices(case, "cuda")

    def spoiled(entries: Tensor) -> Tensor:
        extra = torch.tensor([150, -2, 2**31 - 1, -(2**31)], dtype=torch.int32, device="cuda")
        return torch.cat([extra.expand(*entries.shape[:-1], 4), entries], -1)

    found = mi.vs_attention_with_index(*qkv, spoiled(vertical), spoiled(slash))
    expected = mi.vs_attention_with_index(*qkv, vertical, slash)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    found = mi.block_sparse_attention_with_index(*qkv, spoiled(blocks))
    expected = mi.block_sparse_attention_with_index(*qkv, blocks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- Index and plan ------------------------------------------------------------------------------


def prompt(dtype: torch.dtype, batch: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(batch, length, 4, 64, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(batch, 2, length, 64, generator=generator).to(dtype)
    return q, k


def on_cuda(*tensors: Tensor) -> list[Tensor]:
    return [t.to("cuda") for t in tensors]


def line_scales(dtype: torch.dtype) -> dict[str, Any]:
    """Of the heads of prompt()."""
    if dtype != F8:
        return {}
    return {"q_scale": torch.tensor([0.7, 1.6, 1.1, 0.4]), "k_scale": torch.tensor([1.3, 2.1])}


def of_the_cpu(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """What q and k stand for, in a type that the CPU has."""
    if q.dtype != F8:
        return q, k
    q_scale, k_scale = (scale[:, None, None] for scale in line_scales(F8).values())
    return q.float() * q_scale, k.float() * k_scale


def check_estimation(dtype: torch.dtype) -> None:
    q, k = prompt(dtype, 2, 700)
    first = torch.tensor([0, 33], dtype=torch.int32)
    cuda_q, cuda_k, cuda_first = on_cuda(q, k, first)
    options = {name: scale.to("cuda") for name, scale in line_scales(dtype).items()}
    options["first_valid_key"] = cuda_first
    lines = mi.estimate_vs_index(cuda_q, cuda_k, 40, 120, **options)
    scores = mi.estimate_vs_scores(cuda_q, cuda_k, **options)
    q, k = of_the_cpu(q, k)
    expected = mi.estimate_vs_index(q, k, 40, 120, first_valid_key=first)
    expected_scores = mi.estimate_vs_scores(q, k, first_valid_key=first)
    for found, wanted in zip(scores, expected_scores, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-5)
    for found, wanted in zip(lines, expected, strict=True):
        assert found.shape == wanted.shape
        for a, b in zip(found.cpu().flatten(0, 1), wanted.flatten(0, 1), strict=True):
            missed = set(a.tolist()) ^ set(b.tolist())
            assert len(missed) <= 4, f"other lines than on the CPU: {sorted(missed)}"
    print(f"estimate_vs_index, estimate_vs_scores in {dtype_name(dtype)}: as on the CPU")


def check_packed() -> None:
    q, k = prompt(BF16, 1, 300)
    q, k = (t[0].transpose(0, 1).contiguous() for t in (q, k))
    ends = torch.tensor([0, 100, 100, 300], dtype=torch.int32)
    cuda_q, cuda_k, cuda_ends = on_cuda(q, k, ends)
    found = mi.estimate_vs_scores(cuda_q, cuda_k, cu_seqlens_q=cuda_ends, cu_seqlens_kv=cuda_ends)
    expected = mi.estimate_vs_scores(q, k, cu_seqlens_q=ends, cu_seqlens_kv=ends)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-5)
    print("packed sequences: as on the CPU")


def check_plan_stats(dtype: torch.dtype) -> None:
    q, k = prompt(dtype, 1, 1000)
    patterns = [mi.HeadPattern.dense(), mi.HeadPattern.a_shape(100, 200)]
    patterns += [mi.HeadPattern.tri_shape(64, 128, 70), mi.HeadPattern.block_sparse(3)]
    scales = {name: scale.to("cuda") for name, scale in line_scales(dtype).items()}
    found = ops.plan_stats(*on_cuda(q, k), flatten(patterns), **scales)
    assert found.is_cuda
    expected = ops.plan_stats(*of_the_cpu(q, k), flatten(patterns))
    without_memory = slice(0, -2)  # bytes of a plan differ between the backends
    assert torch.equal(found.cpu()[..., without_memory], expected[..., without_memory])
    print(f"plan_stats in {dtype_name(dtype)}: as on the CPU")


def check_attention_kernel() -> None:
    """Rows at multiples of 16 bytes decide where the device does not."""
    rows = torch.zeros(1, 4, 100, 136, dtype=BF16, device="cuda")[..., :128]
    odd_rows = torch.zeros(1, 4, 100, 129, dtype=BF16, device="cuda")[..., :128]
    info = mi.attention_kernel(rows, rows, rows)
    odd = mi.attention_kernel(rows, odd_rows, rows)
    reserved = mi.attention_kernel(rows, rows, rows, reserved_multiprocessors=1 << 20)
    assert (odd.name, odd.tile_rows, odd.tile_keys) == ("sm80", 128, 64)
    if info.name == "sm90":
        assert (info.tile_rows, info.tile_keys, reserved.num_multiprocessors) == (128, 128, 1)
        assert odd.reason.startswith("k has stride[1] 12900: ")
    else:
        assert info == odd == reserved
    assert odd.num_multiprocessors == info.num_multiprocessors > 0
    packed = mi.attention_kernel(*[rows[0].transpose(0, 1)] * 3)
    assert packed == info
    found = mi.dense_attention(rows, rows, rows, reserved_multiprocessors=1 << 20)
    expected = mi.dense_attention(rows, rows, rows)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    float8 = torch.zeros(1, 4, 100, 144, dtype=F8, device="cuda")[..., :128]
    assert mi.attention_kernel(float8, float8, float8).name == "sm90"
    print(f"attention_kernel: {info.name}: {info.reason}; {odd.name}: {odd.reason}")


def check_conversion() -> None:
    generator = torch.Generator().manual_seed(3)
    vertical = torch.randint(-1, 170, (2, 3, 20), generator=generator, dtype=torch.int32)
    slash = torch.randint(-1, 170, (2, 3, 2, 9), generator=generator, dtype=torch.int32)[:, :, 1]
    vertical[1, 2], slash[0, 1] = -1, -1
    q_seqlens, kv_seqlens = (torch.tensor(n, dtype=torch.int32) for n in ([300, 129], [300, 170]))
    given = (q_seqlens, kv_seqlens, vertical, slash)
    wide = torch.full((2, 3, 2, 9), 7, dtype=torch.int32, device="cuda")[:, :, 1]
    cuda_given = (*on_cuda(*given[:3]), wide.copy_(slash))
    convert: Callable[..., tuple[Tensor, ...]] = mi.convert_vertical_slash_indexes
    for causal in (True, False):
        found = convert(*cuda_given, 310, causal=causal)
        expected = convert(*given, 310, causal=causal)
        for a, b in zip(found, expected, strict=True):
            assert (a.device.type, a.dtype, a.stride()) == ("cuda", b.dtype, b.stride())
            assert torch.equal(a.cpu(), b)
    print("convert_vertical_slash_indexes: as on the CPU")


def check_attended_pairs() -> None:
    case = Case("regular", "", "", PATTERNS["vs"][:1], 330, 330, 1, 1, 1, dtype=BF16)
    solution = check.solve(case)
    layer = Layer(solution.q, solution.k, solution.k)
    cuda_q, cuda_k = on_cuda(solution.q, solution.k)
    on_gpu = Layer(cuda_q, cuda_k, cuda_k)
    vertical_slash = mi.HeadPattern.vertical_slash(40, 105)
    for pattern in (vertical_slash, mi.HeadPattern.a_shape(3, 70), mi.HeadPattern.block_sparse(2)):
        index = LayerIndex((pattern,), dense_fallback=False)
        mask = AttendedPairs(on_gpu, index, 0).strip(0, 330)
        assert mask.is_cuda
        assert torch.equal(mask.cpu(), AttendedPairs(layer, index, 0).strip(0, 330))
    print("attended pairs: as on the CPU")


# ---- Transformers --------------------------------------------------------------------------------

LAYERS = [
    [mi.HeadPattern.a_shape(9, 40), mi.HeadPattern.dense()] * 2,
    [mi.HeadPattern.tri_shape(0, 64, 20), mi.HeadPattern.block_sparse(2)] * 2,
]


def check_attention_function() -> None:
    """By itself, with every kind of mask that it turns into arguments of the op. Fewer than 64
    queries run PyTorch's own attention, which the stand-in does not have."""
    model = tiny(dtype=BF16, head_dim=64)
    integration.configure(model, LAYERS)
    module = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(5)
    masks = {
        "no mask": (200, None),
        "left padding": (200, padded(200, (0, 200), (70, 200))),
        "left padding, a chunk": (100, padded(200, (0, 200), (150, 200))),
        "right padding": (200, padded(200, (0, 130), (0, 200))),
        "free slots of a static cache": (100, padded(200, (0, 160), (20, 160))),
    }
    for name, (q_len, mask) in masks.items():
        q = torch.randn(2, HEADS, q_len, 64, generator=generator).bfloat16()
        k, v = torch.randn(2, 2, KV_HEADS, 200, 64, generator=generator).bfloat16()
        cuda_q, cuda_k, cuda_v = on_cuda(q, k, v)
        mask = None if mask is None else mask.bool()
        for window in (None, 80):
            options: dict[str, Any] = {"scaling": 0.125, "sliding_window": window}
            expected, _ = integration.attention(module, q, k, v, mask, **options)
            cuda_mask = None if mask is None else mask.to("cuda")
            found, _ = integration.attention(module, cuda_q, cuda_k, cuda_v, cuda_mask, **options)
            assert found.is_cuda
            assert found.is_contiguous()
            assert_near(f"{name}, window {window}", found, expected, 0.02)
    print("attention of Transformers: as on the CPU")


def check_model() -> None:
    """All of a model but its attention runs on the host."""
    ids, mask = tokens(2, 150), padded(150, (0, 150), (40, 150))
    model = tiny("minference", dtype=BF16, initializer_range=0.1)
    integration.configure(model, LAYERS, dense_fallback=False)
    expected = model(input_ids=ids, attention_mask=mask).logits
    model = copy.deepcopy(model).to("cuda")  # type: ignore[arg-type]
    with integration.record_plans(model) as plans:
        found = model(input_ids=ids.to("cuda"), attention_mask=mask.to("cuda")).logits
    assert [plan.layer_idx for plan in plans] == [0, 1]
    assert plans[0].stats.attended_pairs.is_cuda
    assert found.shape == (2, 150, VOCABULARY)
    is_token = mask.bool()
    scale = float(expected.abs().max())
    assert_near("logits", found.cpu()[is_token], expected[is_token], 0.05 * scale)
    print("a Llama: as on the CPU")


# ---- Errors --------------------------------------------------------------------------------------


def refuses(text: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RuntimeError, match=text) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def check_errors() -> None:
    q, k = prompt(BF16, 1, 128)
    cuda_q, cuda_k = on_cuda(q, k)
    qk, qkv = (cuda_q, cuda_k), (cuda_q, cuda_k, cuda_k)
    first = torch.zeros(1, dtype=torch.int32)
    lines, blocks = torch.zeros(1, 4, 3, dtype=torch.int32), torch.zeros(1, 4, 2, 1).int()
    out, lse = mi.dense_attention(*qkv)

    refuses("k is on another device than q.*one device", mi.dense_attention, cuda_q, k, cuda_k)
    refuses("v is on another device", mi.a_shape_attention, *qk, k, 1, 1)
    refuses("k is on another device", mi.tri_shape_attention, q, cuda_k, cuda_k, 1, 1, 1)
    refuses("first_valid_key is on", mi.vs_attention, *qkv, 30, 100, first_valid_key=first)
    refuses("vertical_idx is on", mi.vs_attention_with_index, *qkv, lines, lines.to("cuda"))
    refuses("slash_idx is on", mi.vs_attention_with_index, *qkv, lines.to("cuda"), lines)
    refuses("block_idx is on", mi.block_sparse_attention_with_index, *qkv, blocks)
    refuses("out is on another device", mi.dense_attention, *qkv, out=out.cpu(), lse=lse)
    refuses("lse is on another device", mi.block_sparse_attention, *qkv, 1, out=out, lse=lse.cpu())
    refuses("one device", mi.estimate_vs_index, cuda_q, k, 30, 100)
    refuses("one device", mi.estimate_vs_index, *qk, 30, 100, first_valid_key=first)
    refuses("one device", mi.plan_stats, cuda_q, k, [mi.HeadPattern.dense()] * 4)
    lengths = torch.tensor([64], dtype=torch.int32)
    convert, cuda_lines = mi.convert_vertical_slash_indexes, lines.to("cuda")
    refuses("q_seqlens is on", convert, lengths, lengths, cuda_lines, cuda_lines, 64)
    refuses("slash_indexes is on", convert, *on_cuda(lengths, lengths), cuda_lines, lines, 64)

    float32 = "q has dtype float32; CUDA kernels support bfloat16, float16 and float8_e4m3fn"
    wide = [t.float() for t in qkv]
    refuses(float32, mi.dense_attention, *wide)
    refuses(float32, mi.dense_attention, *wide, out=out.float(), lse=lse)
    refuses(float32, mi.sparse_attention, *wide, [mi.HeadPattern.block_sparse(1)] * 4)
    refuses(float32, mi.estimate_vs_index, *wide[:2], 30, 100)
    refuses("k has dtype|dtype of k|k.*float16", mi.dense_attention, cuda_q, cuda_k.half(), cuda_k)
    refuses("head_dim 264", mi.dense_attention, *[torch.zeros(1, 1, 4, 264, device="cuda")] * 3)
    many = torch.zeros(1, 257, 1, 8, dtype=BF16, device="cuda")
    refuses("q has 257 heads; CUDA kernels support at most 256", mi.dense_attention, *[many] * 3)
    one = torch.zeros(1, 1, 1, 8, dtype=BF16, device="cuda")
    long = one.expand(1, 1, 64 * 20_000, 8)
    refuses("top_k.*at most 16384", mi.block_sparse_attention, one, long, long, 17_000)
    refuses("mode is 'fast'", mi.vs_attention, *qkv, 30, 100, mode="fast")
    reserved = {"reserved_multiprocessors": -1}
    refuses("reserved_multiprocessors is -1", mi.dense_attention, *qkv, **reserved)
    refuses("out is the memory of q", mi.dense_attention, *qkv, out=cuda_q, lse=lse)

    needs_grad = cuda_q.clone().requires_grad_()
    assert all(result.requires_grad for result in mi.dense_attention(needs_grad, *qkv[1:]))
    with pytest.raises(NotImplementedError, match="no backward"):
        mi.dense_attention(needs_grad, *qkv[1:], out=out, lse=lse)
    check_float8_errors()
    print("errors: the sentence names what is wrong")


def check_float8_errors() -> None:
    """What the one kernel of float8 does not read, and scales that are none."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=F8, device="cuda")

    q, k = zeros(1, 4, 70, 64), zeros(1, 2, 70, 64)
    qkv = (q, k, k)
    bare = "q has dtype float8_e4m3fn, .*"
    narrow = zeros(1, 4, 70, 32)[..., :24]
    refuses(f"{bare}q has head_dim 24", mi.dense_attention, *[narrow] * 3)
    refuses(f"{bare}q has head_dim 24", mi.estimate_vs_index, narrow, narrow, 30, 100)
    dense = [mi.HeadPattern.dense()] * 4
    refuses(f"{bare}q has head_dim 24", mi.plan_stats, narrow, narrow, dense)
    odd = zeros(1, 2, 70, 72)
    refuses(f"{bare}k has stride", mi.vs_attention, q, odd[..., :64], k, 30, 100)
    refuses(f"{bare}v has stride", mi.block_sparse_attention, q, k, odd[..., :64], 1)
    refuses(f"{bare}q begins 8 bytes", mi.dense_attention, zeros(1, 4, 70, 80)[..., 8:72], k, k)
    with pytest.raises(RuntimeError, match=f"{bare}k has stride"):
        mi.attention_kernel(q, odd[..., :64], k)

    refuses(
        "out has dtype float8_e4m3fn; .* bfloat16", mi.dense_attention, *qkv, out=zeros(*q.shape)
    )
    half = [t.half() for t in qkv]
    of_q, of_k = torch.ones(4, device="cuda"), torch.ones(2, device="cuda")
    refuses("v_scale is given and q has dtype float16", mi.dense_attention, *half, v_scale=of_k)
    refuses("one device", mi.estimate_vs_scores, q, k, q_scale=of_q.cpu())
    refuses("v_scale is on another device", mi.dense_attention, *qkv, v_scale=of_k.cpu())
    refuses(r"k_scale has shape \[4\]; it must be \[2\]", mi.dense_attention, *qkv, k_scale=of_q)
    refuses("q_scale has dtype float16", mi.dense_attention, *qkv, q_scale=of_q.half())
    of_k.requires_grad_()
    assert all(result.requires_grad for result in mi.dense_attention(*qkv, k_scale=of_k))


fake.begin_stream()
with Calls() as calls, torch.no_grad():
    for case in attention_cases():
        check_attention(case)
        print(f"{case}: as on the CPU", flush=True)
    for case in float8_cases():
        check_float8(case)
        print(f"{case}: as the oracle", flush=True)
    check_entries_out_of_range()
    for dtype in (BF16, F16, F8):
        check_estimation(dtype)
    check_packed()
    for dtype in (F16, F8):
        check_plan_stats(dtype)
    check_attention_kernel()
    check_conversion()
    check_attended_pairs()
    check_attention_function()
    check_model()
with torch.enable_grad():
    check_errors()
registered = {name for name in torch._C._dispatch_get_all_op_names() if "minference::" in name}
assert {f"minference::{name}" for name in calls.on_cuda} == registered
assert all(calls.on_cuda.values())
print(f"{calls.on_cuda.total()} calls on CUDA tensors")
maps = Path("/proc/self/maps").read_text()
print(
    "library:", next(line.split()[-1] for line in maps.splitlines() if "libminference.so" in line)
)
