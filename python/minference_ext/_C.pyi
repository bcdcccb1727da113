"""Build information, capabilities, choice of kernel and cost model of libminference
(cpp/torch/module.cpp)."""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

_Tensor: TypeAlias = tuple[int, Sequence[int], Sequence[int], str]

class _KernelInfo(TypedDict):
    name: str
    tile_rows: int
    tile_keys: int
    num_multiprocessors: int
    reason: str

class _Prediction(TypedDict):
    is_dense: bool
    cost_dense: float
    cost_sparse: float

def version() -> str: ...
def cpu_kernels() -> list[tuple[str, bool]]: ...
def cpu_kernel_for(dtype: str) -> str: ...
def has_cuda() -> bool: ...
def cuda_architectures() -> str: ...
def attention_kernel(
    is_cuda: bool,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    reserved_multiprocessors: int,
) -> _KernelInfo: ...
def predict(kind: int, sizes: Sequence[int], q_len: int, kv_len: int) -> _Prediction: ...
def status_string(status: int) -> str: ...
