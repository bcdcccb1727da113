"""setuptools' build backend, which also asks for torch where the environment has none.

torch cannot stand in pyproject.toml: every isolated build would fetch one of the installer's
choice, gigabytes of CUDA included, although the environment that the wheel is for has a torch.
Isolation takes that one off sys.path only: CMakeLists.txt finds it as has_torch() does. Any torch
from 2.11 on will do, because only its stable ABI is used.
"""

from __future__ import annotations

import site
import sys
from importlib.machinery import PathFinder

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

Settings = dict[str, str | list[str] | None] | None


def has_torch() -> bool:
    """Whether the environment of this Python has torch, on sys.path or hidden by isolation."""
    return PathFinder.find_spec("torch", [*sys.path, *site.getsitepackages()]) is not None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    requires = build_meta.get_requires_for_build_wheel(config_settings)
    return [*requires, *([] if has_torch() else ["torch>=2.11"])]


get_requires_for_build_editable = get_requires_for_build_wheel

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]
