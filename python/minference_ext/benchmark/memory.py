"""The most memory that a run takes beyond what there was before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESTART_PEAK = "5"  # what clear_refs takes for it: proc(5)


def peak_increase(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of `device` in use at the peak of run(), less those before.

    On a GPU these are the bytes of tensors. On the CPU it is resident memory of the process: what
    an allocator keeps and uses again counts only where it had been given back, so it is first asked
    to give all back.

    Returns:
        None on a CPU whose system does not let a process restart its peak; run() has run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    is_restarted = _restart_peak()
    resident = _status_bytes("VmRSS") if is_restarted else 0
    run()
    return max(0, _status_bytes("VmHWM") - resident) if is_restarted else None


def _give_back() -> None:
    """glibc keeps freed memory of up to 32 MiB a piece; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _restart_peak() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text(_RESTART_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_PROCESS}/status has no {field}")
