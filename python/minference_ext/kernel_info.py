"""Which kernel attends, and why: the answer of the function that chooses when an op runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from . import _C


@dataclass(frozen=True)
class KernelInfo:
    """A kernel of attention."""

    name: str  #: "sm90" (TMA, wgmma) or "sm80" (cp.async, mma.sync); on the CPU as `cpu_kernels`
    tile_rows: int  #: queries that meet a tile of keys together
    tile_keys: int  #: keys of a tile
    num_multiprocessors: int  #: of the GPU that attention uses; 0 on the CPU
    reason: str  #: one sentence: what of the tensors, the device or the build decided


def attention_kernel(
    q: Tensor, k: Tensor, v: Tensor, *, reserved_multiprocessors: int = 0
) -> KernelInfo:
    """The kernel that any attention op runs for these tensors on this machine, and why.

    Patterns and other arguments make no difference. The tensors are not read, and nothing is
    enqueued. Not under torch.compile, which has no tensors to ask about.

    Args:
        q: `[B, H, S_q, D]`, or packed `[T_q, H, D]`, as in `dense_attention`.
        k: `[B, H_kv, S_kv, D]`, or packed `[T_kv, H_kv, D]`.
        v: as k.
        reserved_multiprocessors: as in `dense_attention`.

    Returns:
        The kernel; `num_multiprocessors` is without those it leaves free.

    Raises:
        ValueError: an argument breaks the contract of `dense_attention`.
        RuntimeError: this build or machine has no kernel for these tensors.
    """
    tensors = {"q": q, "k": k, "v": v}
    if q.device.type not in ("cpu", "cuda"):
        raise ValueError(f"q is on device {q.device}; it must be on the CPU or a CUDA device")
    for name, tensor in tensors.items():
        if tensor.dim() != q.dim() or q.dim() not in (3, 4):
            raise ValueError(
                f"{name} has {tensor.dim()} dimensions; all tensors must have 4: "
                "[batch, heads, seq, head_dim], or 3 if packed: [tokens, heads, head_dim]"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"{name} is on device {tensor.device} and q on {q.device}; all tensors of a call "
                "must be on one device"
            )
    views = _view(q), _view(k), _view(v)
    return KernelInfo(**_C.attention_kernel(q.is_cuda, *views, reserved_multiprocessors))


def _view(tensor: Tensor) -> tuple[int, Sequence[int], Sequence[int], str]:
    """A packed tensor becomes a batch of one."""
    batched = tensor.transpose(0, 1)[None] if tensor.dim() == 3 else tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    return tensor.data_ptr(), batched.shape, batched.stride(), dtype
