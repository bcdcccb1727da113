"""Where the C++ side of the installed package lies, for the build systems of C and C++ programs."""

from __future__ import annotations

from pathlib import Path

_PREFIX = Path(__file__).parent


def cmake_dir() -> Path:
    """Folder of minferenceConfig.cmake: what CMake takes as minference_DIR."""
    return _PREFIX / "lib" / "cmake" / "minference"


def include_dir() -> Path:
    """Folder of the headers, which are included as "minference/minference.h" and
    "minference/c_api.h"."""
    return _PREFIX / "include"


def lib_dir() -> Path:
    """Folder of libminference.so.0; its subfolder pkgconfig holds minference.pc."""
    return _PREFIX / "lib"
