"""Drives CMake: configure, build and install into the package folder. CMakeLists.txt says what.

Read from the environment: MAX_JOBS (parallel compilations) and CMAKE_ARGS (further arguments for
the configure step).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "minference_ext"


def project_version() -> str:
    """The version in CMakeLists.txt's project(), its only place."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    match = re.search(r"^project\(minference VERSION ([0-9.]+)", text, re.MULTILINE)
    if match is None:
        raise SystemExit("CMakeLists.txt has no project(minference VERSION ...)")
    return match.group(1)


def find_tool(name: str) -> str | None:
    """A program on PATH, or one that pip installed beside this Python."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def call(*command: str) -> None:
    """Runs a command whose own message says what is wrong."""
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"minference_ext: this failed, see above: {shlex.join(command)}")


class FreshBuild(build):  # type: ignore[misc]  # its own base has no types
    """Leaves nothing of an earlier build in the wheel, such as a module that is gone."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):  # type: ignore[misc]  # its own base has no types
    """Installs what CMake built: below build_lib for a wheel, into the source tree if editable."""

    def run(self) -> None:
        cmake = find_tool("cmake")
        if cmake is None:
            raise SystemExit("minference_ext: cmake not found: pip install cmake ninja pybind11")
        # Kept between calls and apart per Python version; the Makefile builds in the same folder.
        folder = str(ROOT / "build" / str(sys.implementation.cache_tag))
        # setuptools copies only the module of an editable install back to the source tree and
        # loses lib/ and include/ beside it, so those installs go there directly.
        editable = bool(self.inplace or self.editable_mode)
        package = (ROOT / "python" if editable else Path(self.build_lib).resolve()) / PACKAGE

        configure = [cmake, "-S", str(ROOT), "-B", folder]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DMINFERENCE_PYTHON=ON"]
        ninja = find_tool("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS")
        call(*configure)
        call(cmake, "--build", folder, *(["--parallel", jobs] if jobs else []))
        call(cmake, "--install", folder, "--prefix", str(package))

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    version=project_version(),
    ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)
