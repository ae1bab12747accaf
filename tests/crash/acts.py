"""Finds, in the source, each act that outlives the process: HTTP, SSH, the ledger, files."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "gpujobs"
_WRITING = frozenset("wax+")
_ACTS = frozenset(  # whatever they are called on
    {"write_text", "write_bytes", "rename", "renames", "unlink", "touch", "truncate", "rmtree", "mkdtemp", "mkstemp"}
    | {"mkdir", "rmdir", "symlink_to", "hardlink_to", "copyfile", "copytree", "move", "NamedTemporaryFile"}
    | {"exec_command", "open_session", "create_connection", "pipe_file", "makedirs", "urlopen", "notify", "request"}
)
_REQUESTS = frozenset({"get", "post", "put", "patch", "delete", "head"})


@dataclass(frozen=True, slots=True)
class Act:
    """One call; `guarded` where a `with Point(...)` stands around it."""

    file: str
    function: str
    what: str
    line: int
    guarded: bool


def acts(root: Path = SOURCE) -> Iterator[Act]:
    """Give every act of every file, but for what is sent to machines."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(("remote/", "migrations/")):
            yield from acts_of(path.read_text(encoding="utf-8"), file=name)


def acts_of(source: str, *, file: str) -> Iterator[Act]:
    """Give the acts of one file."""
    yield from _below(ast.parse(source), file=file, function="", guarded=False)


def pointed(root: Path = SOURCE) -> Iterator[str]:
    """Name, with its file, every function that has a `with Point(...)`."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        yield from (f"{name} {function}" for function in _pointed_below(ast.parse(path.read_text("utf-8")), ""))


def _pointed_below(node: ast.AST, function: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".lstrip(".")
    if isinstance(node, ast.With | ast.AsyncWith) and any(_is_point(item.context_expr) for item in node.items):
        yield function
    for child in ast.iter_child_nodes(node):
        yield from _pointed_below(child, function)


def _below(node: ast.AST, *, file: str, function: str, guarded: bool) -> Iterator[Act]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        function, guarded = f"{function}.{node.name}".lstrip("."), False
    if isinstance(node, ast.With | ast.AsyncWith):
        guarded = guarded or any(_is_point(item.context_expr) for item in node.items)
    if isinstance(node, ast.Call) and (what := _act(node)):
        yield Act(file, function, what, node.lineno, guarded)
    for child in ast.iter_child_nodes(node):
        yield from _below(child, file=file, function=function, guarded=guarded)


def _is_point(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Point"


def _act(call: ast.Call) -> str:
    """Name an act, "" for any other call."""
    match call.func:
        case ast.Name(id="open"):
            return "open" if _writes(call.args[1:2], call) and not _is_private(call) else ""
        case ast.Attribute(attr=name, value=value):
            return name if _is_act(name, value, call) else ""
        case ast.Name(id=name):
            return name if name in _ACTS else ""
        case _:
            return ""


def _is_act(name: str, value: ast.expr, call: ast.Call) -> bool:
    owner = ast.unparse(value)
    return (
        name in _ACTS
        or (owner, name) in {("os", "open"), ("os", "link"), ("os", "symlink")}
        or (owner == "requests" and name in _REQUESTS)
        or (name == "open" and _writes(call.args[:2], call))
        or (name == "replace" and len(call.args) == 1 and not call.keywords)
        or (name == "execution_options" and any(word.arg == "writes" for word in call.keywords))
        or (name == "begin" and owner.endswith("engine"))
        or (name == "rm" and owner.endswith("_files"))
    )


def _writes(places: Sequence[ast.expr], call: ast.Call) -> bool:
    modes = [*places, *(word.value for word in call.keywords if word.arg == "mode")]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(text) <= set("rwxabt+") and _WRITING & set(text) for text in texts)


def _is_private(call: ast.Call) -> bool:
    """Say whether it goes through `settings.private_opener`, which is a point of its own."""
    openers = [word.value for word in call.keywords if word.arg == "opener"]
    return any(ast.unparse(opener).endswith("private_opener") for opener in openers)
