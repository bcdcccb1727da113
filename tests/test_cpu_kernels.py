"""Every CPU kernel of this build, forced by its name, over cases that differ in what a kernel sees.

The head line of a pytest run lists the kernels that this machine can run.
"""

from __future__ import annotations

from dataclasses import replace

import minference_ext
import pytest
import torch

from tests import cases, check
from tests.cases import DTYPES, Case, dtype_name
from tests.reference import Lines
from tests.test_sparse_attention import Poison, check_poison, same
from tests.test_vs_index import check_scores

VARIABLE = "MINFERENCE_CPU_KERNEL"
KERNELS = dict(minference_ext.cpu_kernels())


def named(*names: str) -> list[Case]:
    by_name = {case.name: case for case in cases.ALL}
    return [by_name[name] for name in names]


VALUES = named(
    "dense-long",
    "dense-100-of-133",
    "dense-packed",
    "dense-unaligned",
    "dense-steep",
    "dense-tiny-scale",
    *(f"dense-d{d}-float32" for d in cases.HEAD_DIMS),
    "tri-shape-long",
    "tri-shape-left-padded-chunk",
    "lines-per-head",
    "lines-overlapping-pieces",
    "lines-none",
    "lines-exact-no-diagonal",
    "lines-reference-no-diagonal",
    "lines-gqa7",
    "vs-sizes-per-head",
    "vs-63-of-601",
    "top-k-long",
    "blocks-not-causal",
    "mixed-every-128",
    "mixed-packed",
)
PAIRS = named(
    "dense-65-of-97",
    "dense-d136-float32",
    "a-shape-65-63",
    "tri-shape-65",
    "lines-per-head",
    "lines-columns-in-cover",
    "lines-left-padded-chunk",
    "lines-exact-no-diagonal",
    "blocks-repeated",
)
POISONED = [
    Case("corner", "", "", (pattern,), q_len=200, num_heads_q=2, num_heads_kv=1, covers_all=None)
    for pattern in (cases.DENSE[0].heads[0], Lines((5, 70, 71, 130), (0, 40, 101)))
]

kernels = pytest.mark.parametrize("kernel", KERNELS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.fixture
def forced(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces the kernel for the test."""
    if not KERNELS[kernel]:
        pytest.skip(f"this machine cannot run {kernel}")
    monkeypatch.setenv(VARIABLE, kernel)
    assert minference_ext.cpu_kernel_for(dtype_name(dtype)) == kernel
    return kernel


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    return replace(case, dtype=dtype, name=f"{case.name} in {dtype_name(dtype)}")


@kernels
@dtypes
@pytest.mark.parametrize("case", VALUES, ids=str)
@pytest.mark.usefixtures("forced")
def test_values(case: Case, dtype: torch.dtype) -> None:
    check.check_case(in_dtype(case, dtype))


@kernels
@dtypes
@pytest.mark.parametrize("case", PAIRS, ids=str)
@pytest.mark.usefixtures("forced")
def test_pairs(case: Case, dtype: torch.dtype) -> None:
    check.check_attended(in_dtype(case, dtype))


@kernels
@dtypes
@pytest.mark.parametrize("case", named("vs-63-of-601", "vs-packed", "vs-sizes-per-head"), ids=str)
@pytest.mark.usefixtures("forced")
def test_scores(case: Case, dtype: torch.dtype) -> None:
    check_scores(in_dtype(case, dtype))


@kernels
@dtypes
@pytest.mark.parametrize("case", POISONED, ids=["dense", "lines"])
@pytest.mark.parametrize("poison", ["k nan", "k inf", "v nan", "v inf"])
@pytest.mark.usefixtures("forced")
def test_nan_stays_with_the_rows_that_attend_it(
    case: Case, poison: Poison, dtype: torch.dtype
) -> None:
    check_poison(in_dtype(case, dtype), poison)


@kernels
@dtypes
@pytest.mark.usefixtures("forced")
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    case = in_dtype(cases.MIXED[0], dtype)
    inputs = check.draw(case, 0)
    results = []
    for count in (1, 3):
        with check.threads(count):
            results.append(check.run(case, check.arguments(case, *inputs)))
    assert same(*results)


def test_some_kernel_runs_everywhere() -> None:
    assert KERNELS["portable"]


def test_unknown_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 4, 8)
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(RuntimeError, match="mmx"):
        minference_ext.dense_attention(q, q, q)
    monkeypatch.delenv(VARIABLE)
    minference_ext.dense_attention(q, q, q)


def test_kernel_of_another_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 4, 8)
    others = [name for name, is_supported in KERNELS.items() if not is_supported]
    for name in others:
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(RuntimeError, match=name):
            minference_ext.dense_attention(q, q, q)
    if not others:
        pytest.skip("this machine runs every kernel")
