"""Runs torch.ops.minference on CUDA tensors of a torch without CUDA (fake_torch_cuda.cpp), in the
emulator: `python ops_on_cuda.py libtorch_cuda.so`. Prints one line per check, raises where one
fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minference_ext as mi
import pytest
import torch
from minference_ext.patterns import flatten
from torch import Tensor

torch.ops.load_library(sys.argv[1])
fake = torch.ops.fake_cuda
ops = torch.ops.minference


def prompt(dtype: torch.dtype, batch: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(batch, length, 4, 64, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(batch, 2, length, 64, generator=generator).to(dtype)
    return q, k


def refuses(text: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RuntimeError, match=text):
        call(*args, **kwargs)


def check_estimation(dtype: torch.dtype) -> None:
    q, k = prompt(dtype, 2, 700)
    first = torch.tensor([0, 33], dtype=torch.int32)
    given = fake.to_cuda(q), fake.to_cuda(k)
    lookups = fake.stream_lookups()
    lines = ops.estimate_vs_index(*given, [40], [120], first_valid_key=fake.to_cuda(first))
    assert fake.stream_lookups() == lookups + 1, "the op did not ask for torch's current stream"
    expected = ops.estimate_vs_index(q, k, [40], [120], first_valid_key=first)
    scores = ops.estimate_vs_scores(*given, first_valid_key=fake.to_cuda(first))
    expected_scores = ops.estimate_vs_scores(q, k, first_valid_key=first)
    for found, wanted in zip(scores, expected_scores, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(fake.to_cpu(found), wanted, rtol=1e-3, atol=1e-5)
    for found, wanted in zip(lines, expected, strict=True):
        found = fake.to_cpu(found)
        assert found.shape == wanted.shape
        for a, b in zip(found.flatten(0, 1), wanted.flatten(0, 1), strict=True):
            missed = set(a.tolist()) ^ set(b.tolist())
            assert len(missed) <= 4, f"other lines than on the CPU: {sorted(missed)}"
    print(f"estimate_vs_index, estimate_vs_scores in {dtype}: as on the CPU")


def check_packed() -> None:
    q, k = prompt(torch.bfloat16, 1, 300)
    q, k = (t[0].transpose(0, 1).contiguous() for t in (q, k))
    ends = torch.tensor([0, 100, 100, 300], dtype=torch.int32)
    sequences = {"cu_seqlens_q": ends, "cu_seqlens_kv": ends}
    on_cuda = {name: fake.to_cuda(t) for name, t in sequences.items()}
    found = ops.estimate_vs_scores(fake.to_cuda(q), fake.to_cuda(k), **on_cuda)
    expected = ops.estimate_vs_scores(q, k, **sequences)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(fake.to_cpu(a), b, rtol=1e-3, atol=1e-5)
    print("packed sequences: as on the CPU")


def check_plan_stats() -> None:
    q, k = prompt(torch.float16, 1, 1000)
    patterns = [mi.HeadPattern.dense(), mi.HeadPattern.a_shape(100, 200)]
    patterns += [mi.HeadPattern.tri_shape(64, 128, 70), mi.HeadPattern.block_sparse(3)]
    rows = flatten(patterns)
    found = fake.to_cpu(ops.plan_stats(fake.to_cuda(q), fake.to_cuda(k), rows))
    expected = ops.plan_stats(q, k, rows)
    without_memory = slice(0, -2)  # bytes of a plan differ between the backends
    assert torch.equal(found[..., without_memory], expected[..., without_memory])
    print("plan_stats: as on the CPU")


def check_errors() -> None:
    q, k = prompt(torch.bfloat16, 1, 128)
    on_cuda = fake.to_cuda(q), fake.to_cuda(k)
    refuses("one device", ops.estimate_vs_index, on_cuda[0], k, [30], [100])
    first = torch.zeros(1, dtype=torch.int32)
    refuses("one device", ops.estimate_vs_index, *on_cuda, [30], [100], first_valid_key=first)
    refuses("attention runs on the CPU", ops.vs_attention, *on_cuda, on_cuda[1], [30], [100])
    wide = fake.to_cuda(q.float()), fake.to_cuda(k.float())
    refuses("float32", ops.estimate_vs_index, *wide, [30], [100])
    lists = torch.zeros(1, 1, 1, dtype=torch.int32)
    length = fake.to_cuda(torch.tensor([64], dtype=torch.int32))
    convert = ops.convert_vertical_slash_indexes
    refuses("GPU", convert, length, length, fake.to_cuda(lists), fake.to_cuda(lists), 64)
    print("errors: the sentence names what is wrong")


fake.begin_stream()
check_estimation(torch.bfloat16)
check_estimation(torch.float16)
check_packed()
check_plan_stats()
check_errors()
maps = Path("/proc/self/maps").read_text()
print(
    "library:", next(line.split()[-1] for line in maps.splitlines() if "libminference.so" in line)
)
