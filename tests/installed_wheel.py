"""Builds this tree's wheel and sdist and installs the wheel into an environment of its own, away
from the tree: what a user gets. conftest.py makes fixtures of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class WheelEnvironment:
    """A virtual environment with torch and the wheel, without the tree."""

    python: Path
    prefix: Path  # the installed package, minference_ext/


def run(*command: str | Path, cwd: Path, timeout: float = 900) -> str:
    """What a command prints, run as a user would outside of the tree; fails with that text.

    Programs beside the Python of these tests come first: a wheel built here then uses the CMake
    that `make build` uses, and compiles nothing anew.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise AssertionError(f"{command[0]} is missing: this test needs it") from error
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{folder} has {len(found)} files {pattern}: {found}"
    return found[0]


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built as `pip wheel .` does; objects that exist are used."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT, cwd=folder)
    return only(folder, "*.whl")


def build_sdist(folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, ROOT, cwd=folder)
    return only(folder, "*.tar.gz")


def install(wheel: Path, folder: Path) -> WheelEnvironment:
    """An empty environment, then the torch that these tests run with, then the wheel."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    torch = version("torch").partition("+")[0]
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", f"torch=={torch}", cwd=folder)
    run(*pip, "install", wheel, cwd=folder)
    site_packages = only(folder, "lib/python*/site-packages")
    return WheelEnvironment(python, site_packages / "minference_ext")
