"""torch.ops.minference on CUDA tensors with a torch that has no CUDA, on a machine without a GPU.

A stand-in for libtorch_cuda.so makes CUDA tensors; libminference.so and its kernels are the real
ones, linked with the shared CUDA runtime, which ptxsim takes the place of. All of torch but these
tensors runs on the CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import minference_ext
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/torch_cuda"
BUILD = ROOT / f"build/{sys.implementation.cache_tag}"
EMULATOR = ROOT / "build/ptxsim/ptxsim"
SIM = BUILD / "sim"

if not minference_ext.has_cuda():
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)


def cuda_folder() -> Path:
    """The CUDA toolkit the build used."""
    for line in (BUILD / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(("CUDAToolkit_BIN_DIR", "CMAKE_CUDA_COMPILER:")):
            folder = Path(line.split("=", 1)[1])
            folder = folder if folder.is_dir() else folder.parent
            for candidate in (folder.parent, Path("/usr/local/cuda")):
                if (candidate / "include/cuda_runtime_api.h").exists():
                    return candidate
    raise AssertionError(f"{BUILD}/CMakeCache.txt names no CUDA toolkit")


@pytest.fixture(scope="module")
def fake_torch_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if torch.version.cuda is not None:
        pytest.skip("torch has CUDA of its own")
    if not EMULATOR.exists() or not SIM.exists():
        pytest.skip("no emulator: CUDA tensors need ptxsim and `make test-cpp`, or a GPU")
    built = tmp_path_factory.mktemp("fake") / "libtorch_cuda.so"
    torch_folder = Path(torch.__file__).parent
    cuda = cuda_folder()
    includes = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    command += [f"-I{folder}" for folder in (*includes, cuda / "include")]
    command += [str(FOLDER / "fake_torch_cuda.cpp"), "-o", str(built)]
    command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    library = next(
        path for path in (cuda / "lib64", cuda / "lib") if (path / "libcudart.so").exists()
    )
    subprocess.run([*command, f"-L{library}", "-lcudart"], check=True)
    return built


def run(options: tuple[str, ...], script: str, *arguments: Path | str) -> str:
    """What a script of FOLDER prints in the emulator."""
    path = os.pathsep.join((str(ROOT / "python"), str(ROOT)))
    environment = os.environ | {"LD_LIBRARY_PATH": str(SIM), "PYTHONPATH": path}
    command = [str(EMULATOR), *options, "--", sys.executable, str(FOLDER / script)]
    command += [str(argument) for argument in arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--memcheck",), ("--random", "1")])
def test_ops_on_cuda_tensors(fake_torch_cuda: Path, options: tuple[str, ...]) -> None:
    out = run(options, "ops_on_cuda.py", fake_torch_cuda)
    assert f"library: {SIM}" in out
    assert "errors: " in out


@pytest.mark.slow
def test_tests_that_need_a_gpu(fake_torch_cuda: Path) -> None:
    """The numeric ones, but those whose tensors span 4 GB; what has no kernel is skipped and says
    so."""
    tests = [*ROOT.glob("tests/test_*_attention.py"), ROOT / "tests/test_vs_index.py"]
    chosen = ("-k", "not past_31_bits", *map(str, sorted(tests)))
    out = run(("--memcheck",), "gpu_tests.py", fake_torch_cuda, *chosen)
    skips = [line for line in out.splitlines() if line.startswith("SKIPPED")]
    assert skips
    assert all("dtype float32; CUDA kernels support" in line for line in skips), skips
    passed = re.search(r"(\d+) passed", out)
    assert passed
    assert int(passed[1]) > 1000
