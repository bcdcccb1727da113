"""minference info: the build, the machine, and which kernel runs on it, and why."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

import torch

from minference_ext import (
    __version__,
    cpu_kernel_for,
    cpu_kernels,
    cuda_architectures,
    has_cuda,
)
from minference_ext._library import PATH
from minference_ext.benchmark.machine import cpu_model, physical_cores, usable_processors
from minference_ext.command_line import DTYPES, STDOUT, Parser, add_json, table, write_json
from minference_ext.paths import lib_dir

EPILOG = """examples:
  minference info
  minference info --json -                          # for programs
  MINFERENCE_CPU_KERNEL=avx2 minference info        # what a forced kernel would run"""

# Kernels made for bfloat16, and whose code other types run there.
_BFLOAT16_KERNELS = {"amx_bf16": "avx512", "avx512_bf16": "avx512"}

_PACKAGES = {  # what it means that one is there, and that it is not
    "transformers": (
        'attn_implementation="minference" and the demo work',
        "no attn_implementation and no demo: pip install 'transformers>=4.57'",
    ),
    "matplotlib": ("pictures are drawn", "no pictures: pip install matplotlib"),
}


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "info",
        help="what this build and this machine run, for bug reports",
        description="Shows build, machine, and the kernel each type runs and why: for bug reports.",
        epilog=EPILOG,
    )
    add_json(parser)
    parser.set_defaults(command=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    record = collect()
    if arguments.json != STDOUT:
        print(_text(record))
    write_json(arguments.json, record)
    return 0


def collect() -> dict[str, Any]:
    """All that `minference info` says."""
    forced = os.environ.get("MINFERENCE_CPU_KERNEL")
    return {
        "build": {
            "minference_ext": __version__,
            "libminference": str(lib_dir() / "libminference.so.0"),
            "torch_ops": str(PATH),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "cpu": {
            "model": cpu_model(),
            "cores": physical_cores(),
            "logical_processors": os.cpu_count(),
            "usable_processors": usable_processors(),
            "threads": torch.get_num_threads(),
        },
        "cpu_kernels": [
            {"name": name, "is_supported": is_supported} for name, is_supported in cpu_kernels()
        ],
        "forced_cpu_kernel": forced,
        "kernel_for": {dtype: _choice(dtype, forced) for dtype in DTYPES},
        "cuda": _cuda(),
        "packages": {name: _package(name) for name in _PACKAGES},
    }


def _choice(dtype: str, forced: str | None) -> dict[str, str | None]:
    """The kernel that runs this type, and why; None: no kernel, and why not."""
    try:
        kernel = cpu_kernel_for(dtype)
    except (RuntimeError, ValueError) as error:
        return {"kernel": None, "reason": str(error)}
    reason = (
        f"forced by MINFERENCE_CPU_KERNEL={forced}"
        if forced
        else "the best of those this machine can run"
    )
    if dtype != "bfloat16" and kernel in _BFLOAT16_KERNELS:
        reason += f"; it speeds up bfloat16 only, so {dtype} runs {_BFLOAT16_KERNELS[kernel]} code"
    return {"kernel": kernel, "reason": reason}


def _cuda() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if not has_cuda():
        meaning = "tensors on a GPU are refused; build with nvcc for them"
    elif device is None:
        meaning = "nothing to run them on"
    elif torch.cuda.get_device_capability() < (8, 0):
        meaning = "older than sm_80: tensors on it are refused"
    elif torch.cuda.get_device_capability() == (9, 0) and "90a" in cuda_architectures():
        meaning = "all ops run on it, in bfloat16, float16 and float8_e4m3fn"
    else:
        meaning = "all ops run on it, in bfloat16 and float16"
    return {
        "has_kernels": has_cuda(),
        "architectures": [a for a in cuda_architectures().split(";") if a],
        "torch_cuda": torch.version.cuda,
        "device": device,
        "meaning": meaning,
    }


def _package(name: str) -> dict[str, str | None]:
    found, missing = _PACKAGES[name]
    try:
        return {"version": package_version(name), "meaning": found}
    except PackageNotFoundError:
        return {"version": None, "meaning": missing}


def _text(record: dict[str, Any]) -> str:
    build, cpu, cuda = record["build"], record["cpu"], record["cuda"]
    cores = cpu["cores"] or "unknown number of"
    rows = [
        ("minference_ext", build["minference_ext"]),
        ("libminference", build["libminference"]),
        ("torch ops", build["torch_ops"]),
        ("torch", build["torch"]),
        ("Python", f"{build['python']} on {build['system']}"),
        ("CPU", cpu["model"]),
        (
            "",
            (
                f"{cores} cores, {cpu['logical_processors']} logical processors, "
                f"{cpu['usable_processors']} usable here, {cpu['threads']} threads in torch"
            ),
        ),
    ]
    for index, kernel in enumerate(record["cpu_kernels"]):
        can = "this machine can run it" if kernel["is_supported"] else "not on this machine"
        rows.append(("CPU kernels" if index == 0 else "", f"{kernel['name']}: {can}"))
    for index, (dtype, choice) in enumerate(record["kernel_for"].items()):
        kernel = choice["kernel"] or "none"
        rows.append(("chosen" if index == 0 else "", f"{dtype}: {kernel}: {choice['reason']}"))
    built_for = ", ".join(f"sm_{name}" for name in cuda["architectures"])
    kernels = f"kernels for {built_for}" if cuda["has_kernels"] else "no kernels in this build"
    sees = f"torch sees {cuda['device']}" if cuda["device"] else "torch sees no device"
    built = f"torch for CUDA {cuda['torch_cuda']}" if cuda["torch_cuda"] else "torch without CUDA"
    rows.append(("CUDA", f"{kernels}, {built}, {sees}: {cuda['meaning']}"))
    for name, package in record["packages"].items():
        rows.append((name, f"{package['version'] or 'not found'}: {package['meaning']}"))
    return table(rows, num_left=2)
