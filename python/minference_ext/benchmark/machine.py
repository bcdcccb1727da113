"""What a result was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

from minference_ext import __version__
from minference_ext._C import cpu_kernel_for


def _processors() -> list[dict[str, str]]:
    """What Linux says of each logical processor; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    processors = []
    for block in text.strip().split("\n\n"):
        fields = [line.partition(":") for line in block.splitlines()]
        processors.append({key.strip(): value.strip() for key, _, value in fields})
    return processors


def cpu_model() -> str:
    """The processor's name, with family and model where Linux tells them."""
    first = (_processors() or [{}])[0]
    name = first.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in first:
        return name
    return f"{name} (family {first['cpu family']}, model {first.get('model')})"


def physical_cores() -> int | None:
    """Cores, not hardware threads; None where the system does not tell."""
    cores = {(row.get("physical id"), row.get("core id")) for row in _processors()}
    return len(cores) if cores and (None, None) not in cores else None


def usable_processors() -> int:
    """Logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: str = "cpu") -> dict[str, object]:
    """The machine; `gpu` is there where `device` is one."""
    is_gpu = device.startswith("cuda")
    gpu = {"gpu": torch.cuda.get_device_name(torch.device(device))} if is_gpu else {}
    return {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "cpu": cpu_model(),
        **gpu,
        "threads": torch.get_num_threads(),
        "kernel": cpu_kernel_for("bfloat16"),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
