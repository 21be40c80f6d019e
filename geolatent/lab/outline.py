"""Functions without their bodies: name, parameters and docstring, read from the source.

Commands live in modules that need torch, which takes seconds to import; their options do not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# what parameters may name: modules that load at once
LIGHT = ("pathlib", "typing", "collections.abc", "geolatent.lab.config")


def outline(location: str) -> Callable[..., Any]:
    """Return a function without its body, and without importing its module.

    Annotations that name anything else than the modules `LIGHT` offer become
    ``str | dict[str, Any]``, for they are of objects that a config gives as the name of a class, or
    as ``class_path`` and ``init_args``.

    Parameters
    ----------
    location
        ``"package.module:function"``.

    Raises
    ------
    ValueError
        If the module has no such function.

    Examples
    --------
    >>> import inspect
    >>> report = outline("geolatent.lab.plot:report")
    >>> list(inspect.signature(report).parameters), report.__doc__.split(".")[0]
    (['runs_dir'], 'Print one table of all finished runs in a folder and its sub-folders')
    """
    module, _, name = location.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"There is no module {module}.")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"), spec.origin)
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise ValueError(f"There is no function {name} in {module}.")
    function = found[0]
    docstring = ast.get_docstring(function, clean=False) or ""
    function.body = [ast.Expr(ast.Constant(docstring))]
    known = {"str", "int", "float", "bool", "None", "tuple", "list", "dict"}
    imports: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in ("__future__", *LIGHT):
            imports.append(node)
            known |= {alias.asname or alias.name for alias in node.names}
    for argument in (*function.args.args, *function.args.kwonlyargs):
        names = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
        if names - known:
            text = "str | dict[str, __import__('typing').Any]"
            argument.annotation = ast.parse(text, mode="eval").body
    parts = ast.fix_missing_locations(ast.Module([*imports, function], type_ignores=[]))
    # of no module of the package: jsonargparse imports the one that a function says it is of
    namespace: dict[str, Any] = {"__name__": "__main__"}
    # the source of this package, as an import would run it
    exec(compile(parts, spec.origin, "exec"), namespace)
    return namespace[name]
