"""Devices, seeds and example counts of the numeric tests. A test with an argument `device` runs on
every device of this machine. Tests without tensors run without torch and without the package."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import installed_wheel

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, max_examples=60, print_blob=True
)
hypothesis.settings.load_profile("repeatable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        import torch

        devices = [pytest.param("cpu")]
        if torch.cuda.is_available():
            devices.append(pytest.param("cuda", marks=pytest.mark.gpu))
        metafunc.parametrize("device", devices)


# What the CUDA backend does not serve, in its own words.
_CUDA_REFUSES = (
    "CUDA kernels (support|rank)"
    "|float8_e4m3fn, .*(device of compute capability|build has no code for)"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """On a GPU, a test of what CUDA refuses says so instead of failing."""
    try:
        return (yield)
    except RuntimeError as error:
        if item.get_closest_marker("gpu") and re.search(_CUDA_REFUSES, str(error)):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def _seed() -> None:
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree's wheel."""
    return installed_wheel.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_environment(wheel: Path) -> Iterator[installed_wheel.WheelEnvironment]:
    """An environment with the wheel installed and the tree out of reach: .python and .prefix."""
    with tempfile.TemporaryDirectory() as folder:  # torch is large: pytest would keep three
        yield installed_wheel.install(wheel, Path(folder) / "environment")


def pytest_report_header() -> str:
    """Which CPU kernels the tests force; the rest of them cannot run here."""
    try:
        import minference_ext
    except ImportError as error:
        return f"minference_ext cannot be imported: {error}"
    kernels = minference_ext.cpu_kernels()
    ran = [name for name, is_supported in kernels if is_supported]
    rest = [name for name, is_supported in kernels if not is_supported]
    cannot = f"; not on this machine: {', '.join(rest)}" if rest else ""
    return f"CPU kernels, each forced by name: {', '.join(ran)}{cannot}"
