"""Finds what is built for CUDA and says how to build the rest, without a network.

Needed: the programs of tests/cpp/cuda and bench/cuda, and the package, importable by this Python
and with CUDA kernels. All of it may have been built elsewhere and carried here; of that only _C,
the Python module, depends on the Python version, and it compiles in seconds.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .steps import Step

BENCHMARK = "kernel_bench"
_CHECK = """
import minference_ext as m
if not m.has_cuda(): raise SystemExit("minference_ext is built without CUDA kernels")
"""


@dataclass(frozen=True)
class Built:
    """What there is. A missing program is not in `programs`."""

    programs: dict[str, Path]
    missing: list[str]  #: names of programs
    package_lacks: str  #: why the package cannot be used; empty: it can
    is_tree: bool  #: CMake made these programs from this checkout: it can update them


def cuda_tests(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "tests/cpp/cuda").glob("*_test.c*"))


def environment(root: Path) -> dict[str, str]:
    """Of all steps: the package in place, the run-time library of CUDA, the first GPU."""
    nvcc = shutil.which("nvcc")
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(nvcc).resolve().parent.parent / "lib64"] if nvcc else []
    folders += [Path("/usr/local/cuda/lib64")]
    for place in (spec.submodule_search_locations or []) if spec else []:
        folders += sorted(Path(place).glob("*/lib"))
    libraries = [str(folder) for folder in folders if list(folder.glob("libcudart.so*"))]

    def path(name: str, *entries: str) -> str:
        return os.pathsep.join([*entries, *filter(None, [os.environ.get(name)])])

    return {
        "PYTHONPATH": path("PYTHONPATH", str(root), str(root / "python")),
        "LD_LIBRARY_PATH": os.pathsep.join(
            [*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *libraries[:1]]
        ),
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
    }


def find(root: Path, folder: Path | None) -> Built:
    """`folder`: where programs are; None: any below build."""
    folders = [folder] if folder else sorted(path for path in (root / "build").glob("*"))
    programs, missing = {}, []
    for name in [*cuda_tests(root), BENCHMARK]:
        candidates = [place / name for place in folders]
        found = [path for path in candidates if path.is_file() and os.access(path, os.X_OK)]
        if found:
            programs[name] = max(found, key=lambda path: path.stat().st_mtime)
        else:
            missing.append(name)
    homes = []
    for place in {path.parent for path in programs.values()}:
        cache = place / "CMakeCache.txt"
        text = cache.read_text(errors="replace") if cache.is_file() else ""
        homes += re.findall(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", text, re.MULTILINE)
    check = subprocess.run(
        [sys.executable, "-c", _CHECK],
        cwd=root,
        env={**os.environ, **environment(root)},
        capture_output=True,
        text=True,
    )
    complaints = check.stderr.strip().splitlines() or [f"exit status {check.returncode}"]
    return Built(
        programs,
        missing,
        "" if check.returncode == 0 else complaints[-1],
        is_tree=any(Path(home).resolve() == root.resolve() for home in homes),
    )


def module_step(root: Path) -> Step | None:
    """Compiles _C alone, for a package that has its libraries but not this Python's module."""
    package = root / "python/minference_ext"
    module = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.find_spec("pybind11")
    libraries = [
        package / "lib" / name for name in ("libminference.so.0", "libminference_torch.so")
    ]
    compiler = shutil.which("c++") or shutil.which("g++")
    if module.exists() or not all(map(Path.exists, libraries)) or not (spec and compiler):
        return None
    include = [
        root / "cpp",
        root / "cpp/include",
        Path((spec.submodule_search_locations or [""])[0]) / "include",
        Path(sysconfig.get_path("include")),
    ]
    command = [compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [f"-I{folder}" for folder in include]
    command += [str(root / "cpp/torch/module.cpp"), "-o", str(module)]
    command += [str(libraries[0]), "-Wl,-rpath,$ORIGIN/lib"]
    return Step("build", "_C for this Python", command, limit=120)


def everything_step(root: Path) -> Step:
    """CMake, as setup.py drives it: the package in place, tests and benchmark in build/<Python>."""
    lacking = [
        name
        for name in ("cmake", "nvcc")
        if not (shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts")))
        and not (name == "nvcc" and Path("/usr/local/cuda/bin/nvcc").exists())
    ]
    if lacking:
        note = f"{' and '.join(lacking)} not found: what is missing has to be built elsewhere"
        return Step("build", "everything", [], note=note)
    arguments = [*shlex.split(os.environ.get("CMAKE_ARGS", ""))]
    arguments += ["-DMINFERENCE_CUDA=ON", "-DMINFERENCE_TESTS=ON"]
    return Step(
        "build",
        "everything",
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        limit=600,
        environment={"CMAKE_ARGS": shlex.join(arguments)},
    )
