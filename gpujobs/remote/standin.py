"""Stands for the package `gpujobs` on the machine, where it is not installed and a project's files import it.

A decorated function is itself there: calling it, or its `local`, runs it. Whatever else is imported can be named, in
an `except` too, and cannot be used.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any, Callable, Optional, Sequence


def gpu_job(*_args: Any, **_keys: Any) -> Callable[[Any], Any]:
    """Leave the function as it is."""

    def mark(function: Any) -> Any:
        function.local = function
        for verb in ("remote", "submit", "aremote", "map", "starmap"):
            setattr(function, verb, _refuse)
        return function

    return mark


def _refuse(*_args: Any, **_keys: Any) -> None:
    raise RuntimeError(
        "this is the rented machine already: call the function itself; and what a script does at its top, as making "
        'this call, belongs under: if __name__ == "__main__":'
    )


Fleet = _refuse


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, _path: Optional[Sequence[Any]] = None, _target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if not name.startswith(__name__ + "."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["gpu_job"] = gpu_job


sys.modules[__name__].__class__ = _StandIn
sys.meta_path.insert(0, _Finder())
