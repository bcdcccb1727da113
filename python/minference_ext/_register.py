"""Registers attn_implementation="minference" as soon as Transformers has a model to build.

`import minference_ext` must not import Transformers, which takes seconds, and a user must not have
to import one module more to use the name. So registration waits until Transformers loads the module
that every model needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
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
    """Lets the other finders find the awaited module, and registers once it has been executed."""

    def __init__(self) -> None:
        self._is_searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AWAITED or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(Loader):
    """Loads as another loader does, then registers."""

    def __init__(self, loader: Loader, watcher: _Watcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._watcher in sys.meta_path:
            sys.meta_path.remove(self._watcher)
        _register()
