"""What a result was measured on."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

import minference_ext
import torch
from minference_ext import _C


def cpu_model() -> str:
    """The processor's name and family as Linux gives them."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def commit() -> str:
    """Commit of the checkout, with '+' if it has changes."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def describe() -> dict[str, object]:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "version": minference_ext.__version__,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "kernel": _C.cpu_kernel_for("bfloat16"),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
