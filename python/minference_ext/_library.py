"""Finds and loads libminference_torch.so, which registers torch.ops.minference."""

from __future__ import annotations

from pathlib import Path

import torch

PATH = Path(__file__).parent / "lib" / "libminference_torch.so"


def load(path: Path = PATH) -> None:
    """Registers torch.ops.minference from `path`, at most once per process.

    Raises:
        ImportError: the library is missing, does not load, or another copy of it is registered.
    """
    if str(path.resolve()) in torch.ops.loaded_libraries:
        return
    if not path.exists():
        raise ImportError(
            f"{path} is missing: minference_ext is not built. In a checkout of it, run "
            "pip install --no-build-isolation -e ."
        )
    # torch would crash without a word on a second registration through the stable ABI.
    if hasattr(torch.ops.minference, "dense_attention"):
        raise ImportError(
            f"torch.ops.minference is already registered by another library than {path}: "
            "is minference_ext installed twice?"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load into torch {torch.__version__}; "
            f"minference_ext needs torch 2.11 or later: {error}"
        ) from error
