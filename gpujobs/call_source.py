"""Where a function's source is: what goes up, and how the machine finds the function in it."""

import inspect
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpujobs.errors import BadInput

_MARKS = ("pyproject.toml", "setup.py", "setup.cfg", ".git", ".gpujobsignore")  # of a project's topmost folder
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How a function travels."""

    name: str  # its qualified name
    module: str
    workdir: str  # the folder that goes up; "": none
    roots: Sequence[str]  # folders in it from which modules are imported, relative to it
    by_value: bool  # the function goes as bytecode, with what it closes over
    named: bool = True  # the machine finds it by its name; else it goes with the arguments


def find_source(function: Callable[..., Any], *, workdir: str | None) -> Source:
    """Find how `function` travels; `workdir` is the folder that the user names (None: the project's, "": nothing).

    Raises BadInput where its source lies outside of what goes up.
    """
    file, by_value = _file(function), not is_importable(function)
    folder = _named(workdir, file) if workdir else None
    if workdir is None:
        folder = _project(file.parent if file else Path.cwd(), wanted=file is not None)
    if not by_value:
        _check_inside(function, file, folder)
    module = _module(function, file)
    roots = _roots(folder, file, module) if folder else []
    return Source(
        name=function.__qualname__,
        module=module,
        workdir=str(folder) if folder else "",
        roots=roots,
        by_value=by_value,
    )


def find_any(called: Callable[..., Any], *, workdir: str | None) -> Source:
    """Find how whatever can be called travels: as `find_source` says for a function of the user's.

    A bound method, a functools.partial, or what is of Python itself or of an installed package goes with the arguments.
    """
    base = called
    while isinstance(base, partial):
        base = base.func
    base = getattr(base, "__func__", base)
    module = str(getattr(base, "__module__", None) or type(base).__module__)
    file = getattr(sys.modules.get(module), "__file__", None)
    installed = module.partition(".")[0] in sys.stdlib_module_names - {"__main__"} or (
        file is not None and bool(_INSTALLED & set(Path(file).parts))
    )
    if inspect.isfunction(called) and not installed:
        return find_source(called, workdir=workdir)
    path = None if installed or file is None else Path(file).resolve()
    folder = _named(workdir, path) if workdir else None
    if workdir is None and path is not None:
        folder = _project(path.parent, wanted=True)
    return Source(
        name=getattr(base, "__qualname__", type(base).__qualname__),
        module=module,
        workdir=str(folder) if folder else "",
        roots=_roots(folder, path, module) if folder else [],
        by_value=inspect.isfunction(base) and not installed and not is_importable(base),
        named=False,
    )


def is_importable(function: Callable[..., Any]) -> bool:
    """Say whether the function can be imported by its module and its qualified name."""
    if _file(function) is None:
        return False
    found: Any = sys.modules.get(function.__module__)
    for step in function.__qualname__.split("."):
        found = inspect.getattr_static(found, step, None)
    found = found.__func__ if isinstance(found, staticmethod) else found
    return inspect.unwrap(found) is inspect.unwrap(function) if callable(found) else False


def source_folder(function: Callable[..., Any]) -> Path:
    """Give the folder that relative paths beside a function are relative to."""
    file = _file(function)
    return file.parent if file else Path.cwd()


def main_module(workdir: str) -> dict[str, str] | None:
    """Say how the main module is run again on the machine: {"module": …} where it was (python -m), else {"path": …}.

    None where it has no file, as in a notebook. Raises BadInput where its file does not go up.
    """
    module = sys.modules["__main__"]
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    if not workdir or not path.is_relative_to(workdir):
        raise BadInput(f"the script {path} is needed on the machine and does not go up; name its folder with workdir=")
    return {"module": spec.name} if spec is not None else {"path": str(path.relative_to(workdir))}


def _file(function: Callable[..., Any]) -> Path | None:
    """Give the file that a function was written in; None for a notebook and for what was typed in."""
    module = sys.modules.get(function.__module__)
    found = getattr(module, "__file__", None)
    return Path(found).resolve() if found and Path(found).is_file() else None


def _module(function: Callable[..., Any], file: Path | None) -> str:
    """Give the name that the machine imports the function's module by; Prefect makes one up for a flow's file."""
    made_up = function.__module__.startswith("__prefect_loader_")
    return file.stem if made_up and file is not None else function.__module__


def _named(workdir: str, file: Path | None) -> Path:
    folder = ((file.parent if file else Path.cwd()) / Path(workdir).expanduser()).resolve()
    if not folder.is_dir():
        raise BadInput(f"workdir: {workdir} is no folder (looked for {folder}); name the project's")
    return folder


def _project(start: Path, *, wanted: bool) -> Path | None:
    """Give the topmost folder of the project: the nearest one with a mark of it, else the import root."""
    for folder in (start, *start.parents):
        if any((folder / mark).exists() for mark in _MARKS) and not _too_wide(folder):
            return folder
    folder = start
    while (folder / "__init__.py").exists():
        folder = folder.parent
    if not _too_wide(folder):
        return folder
    if not wanted:
        return None
    raise BadInput(
        f"{folder} would go up to the machine as the function's project, which is more than one; "
        "move the function's file into a folder of its own, or name the folder with workdir="
    )


def _too_wide(folder: Path) -> bool:
    shared = {Path(tempfile.gettempdir()).resolve(), Path("/root"), Path.home().resolve()}
    return any(folder == one or folder in one.parents for one in shared)


def _check_inside(function: Callable[..., Any], file: Path | None, folder: Path | None) -> None:
    if folder is None or file is None or not file.is_relative_to(folder):
        raise BadInput(
            f"{function.__module__}.{function.__qualname__} is in {file}, and "
            f"{f'only {folder} goes' if folder else 'no folder goes'} up to the machine; name its folder with workdir="
        )
    if _INSTALLED & set(file.parts):
        raise BadInput(
            f"{file} belongs to an installed package, which does not go up; call it from a function of yours"
        )


def _roots(folder: Path, file: Path | None, module: str) -> list[str]:
    """Give the folders of sys.path that go up, in its order, and the one that the module was imported from."""
    installed = {Path(path).resolve() for path in (*site.getsitepackages(), sysconfig.get_path("stdlib"))}
    found = [Path(path or ".").resolve() for path in sys.path]
    if file is not None and module != "__main__":
        found.append(file.parents[module.count(".") + (file.name == "__init__.py")])
    inside = [
        str(path.relative_to(folder))
        for path in found
        if path.is_relative_to(folder) and path.is_dir() and path not in installed and not _INSTALLED & set(path.parts)
    ]
    return list(dict.fromkeys(inside))
