"""Commands without their bodies: name, options and docstring, read from the source.

Commands live in modules that need torch, which takes seconds to import; their options do not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from geolatent.lab.config import CHOICES

# what options may name: modules that load at once
LIGHT = ("pathlib", "typing", "collections.abc", "dataclasses", "geolatent.lab.config")
_BUILTINS = {"str", "int", "float", "bool", "None", "tuple", "list", "dict", "type"}
# of an option whose type or default is of another module: that of objects, which a config gives as
# the name of a class, or as ``class_path`` and ``init_args``
_OBJECT = ast.parse("str | dict[str, __import__('typing').Any]", mode="eval").body


def outline(location: str) -> Callable[..., Any]:
    """Return a function, or a dataclass, without its body and without importing its module.

    Of a class its fields are left, and those of its bases; annotations that name anything else than
    the modules `LIGHT` offer become ``str | dict[str, Any]``, and such defaults their texts. A
    function has no such options.

    Parameters
    ----------
    location
        ``"package.module:name"``.

    Examples
    --------
    >>> import inspect
    >>> report = outline("geolatent.lab.report:report")
    >>> list(inspect.signature(report).parameters), report.__doc__.split(".")[0]
    (['runs_dir'], 'Print one table of all finished runs in a folder and its sub-folders')
    >>> solver = outline("geolatent.solvers.georce:GEORCESolver")
    >>> solver().segments, solver.__annotations__["tolerance"]
    (100, <class 'float'>)
    """
    module, _, name = location.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"There is no module {module}.")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"), spec.origin)
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [node for node in tree.body if isinstance(node, kinds) and node.name == name]
    if not found:
        raise ValueError(f"There is no function or class {name} in {module}.")
    lines: list[ast.stmt] = []
    known = set(_BUILTINS)
    places: dict[str, str] = {}  # other names, and where they are defined
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and line.module in LIGHT:
            lines.append(line)
            known |= {alias.asname or alias.name for alias in line.names}
        elif isinstance(line, ast.ImportFrom) and line.level == 0:
            places |= {alias.name: f"{line.module}:{alias.name}" for alias in line.names}
        elif isinstance(line, ast.ClassDef):
            places[line.name] = f"{module}:{line.name}"
    # of no module of the package: jsonargparse imports the one that a function says it is of
    namespace: dict[str, Any] = {"__name__": "__main__"}
    node = found[0]
    docstring = ast.Expr(ast.Constant(ast.get_docstring(node, clean=False) or ""))
    if isinstance(node, ast.FunctionDef):
        node.body = [docstring]
    else:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        bases = [base for base in bases if places.get(base, "").startswith("geolatent.")]
        namespace |= {base: outline(places[base]) for base in bases}
        node.bases = [ast.Name(base, ast.Load()) for base in bases]
        node.decorator_list = [d for d in node.decorator_list if not _names(d) - known]
        node.body = [docstring, *(_field(line, known) for line in node.body if _is_field(line))]
    parts = ast.fix_missing_locations(ast.Module([*lines, node], type_ignores=[]))
    # the source of this package, as an import would run it
    exec(compile(parts, spec.origin, "exec", dont_inherit=True), namespace)
    return namespace[name]


def choices(default: object) -> list[Callable[..., Any]]:
    """Return the outlines of the classes that an option may be of, by its default in an outline.

    Examples
    --------
    >>> [choice.__name__ for choice in choices("PreconditionedSolver")]
    ['PreconditionedSolver', 'FirstOrderSolver', 'GEORCESolver']
    """
    known = CHOICES.get(default, ()) if isinstance(default, str) else ()
    return [outline(location) for location in known]


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _is_field(line: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    return isinstance(line, ast.AnnAssign) and "ClassVar" not in _names(line.annotation)


def _field(line: ast.AnnAssign, known: set[str]) -> ast.AnnAssign:
    """Return the field of an outline; a default that cannot be had is the name of its class."""
    if _names(line.annotation) - known:
        line.annotation = _OBJECT
    if line.value is not None and _names(line.value) - known:
        called = line.value.func if isinstance(line.value, ast.Call) else line.value
        line.value = ast.Constant(ast.unparse(called))
    return line
