"""Registers attn_implementation="minference" as soon as Transformers has a model to build.

`import minference_ext` must not import Transformers, which takes seconds, and a user must not have
to import one module more to use the name. So registration waits until Transformers loads the module
that every model needs.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_AWAITED = "transformers.modeling_utils"


def register_when_imported() -> None:
    """Registers now if Transformers' models are imported, else right after they are."""
    if _AWAITED in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    try:
        importlib.import_module("minference_ext.transformers")
    except ImportError as error:  # raised here, it would break the import of Transformers itself
        warnings.warn(f'attn_implementation="minference" is not available: {error}', stacklevel=2)


class _Watcher(MetaPathFinder):
    """Finds the awaited module as Python would, and registers once it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
