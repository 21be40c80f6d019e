"""Commands without their bodies: name, options and docstring, read from the source.

Commands live in modules that need torch, which takes seconds to import; their options do not.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geolatent.lab.config import CHOICES

# what options may name: modules that load at once
LIGHT = ("pathlib", "typing", "collections.abc", "dataclasses", "geolatent.lab.config")
_BUILTINS = {"str", "int", "float", "bool", "None", "tuple", "list", "dict", "type"}
# of an option whose type or default is of another module: that of objects, which a config gives as
# the name of a class, or as ``class_path`` and ``init_args``
_OBJECT = ast.parse("str | dict[str, __import__('typing').Any]", mode="eval").body


def outline(location: str) -> Callable[..., Any]:
    """Return a function, or a dataclass, without its body and without importing its module.

    Of a class its fields are left, and those of its bases. Annotations that name anything else than
    the modules `LIGHT` offer become ``str | dict[str, Any]``, and such defaults their texts.

    Parameters
    ----------
    location
        ``"package.module:name"``.

    Raises
    ------
    ValueError
        If the module has no such function or class.

    Examples
    --------
    >>> import inspect
    >>> report = outline("geolatent.lab.plot:report")
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
    node = copy.deepcopy(found[0])
    docstring = ast.Expr(ast.Constant(ast.get_docstring(node, clean=False) or ""))
    if isinstance(node, ast.FunctionDef):
        for argument in (*node.args.args, *node.args.kwonlyargs):
            if argument.annotation is not None and _names(argument.annotation) - known:
                argument.annotation = _OBJECT
        node.args.defaults = [_light(default, known) for default in node.args.defaults]
        node.body = [docstring]
    else:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        bases = [base for base in bases if places.get(base, "").startswith("geolatent.")]
        namespace |= {base: outline(places[base]) for base in bases}
        node.bases = [ast.Name(base, ast.Load()) for base in bases]
        node.decorator_list = [d for d in node.decorator_list if not _names(d) - known]
        node.body = [docstring, *(f for f in map(_field(known), node.body) if f is not None)]
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


def _light(default: ast.expr, known: set[str]) -> ast.expr:
    """Return a default that can be had, or its text: the name of the class of an object."""
    if not _names(default) - known:
        return default
    called = default.func if isinstance(default, ast.Call) else default
    return ast.Constant(ast.unparse(called))


def _field(known: set[str]) -> Callable[[ast.stmt], ast.stmt | None]:
    """Return what makes the field of an outline of a line of a class; None of any other line."""

    def field(line: ast.stmt) -> ast.stmt | None:
        if not isinstance(line, ast.AnnAssign) or "ClassVar" in _names(line.annotation):
            return None
        kept = copy.deepcopy(line)
        if _names(kept.annotation) - known:
            kept.annotation = _OBJECT
        if kept.value is not None:
            kept.value = _light(kept.value, known)
        return kept

    return field
