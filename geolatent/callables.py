"""The modules that a callable uses, found through everything that its code can name."""

from __future__ import annotations

import dis
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# objects that are looked at; what lies behind more is not found
_MAX_OBJECTS = 5000
# items of one container
_MAX_ITEMS = 1000
# values that lead nowhere
_ATOMS = (Tensor, str, bytes, int, float, complex, type(None))
# what is used of an object that is itself called
_CALLS = frozenset({"__call__", "forward"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
# code that is not the user's: followed through what it closes over, not through its globals
_LIBRARIES = frozenset({"torch", "numpy", "scipy", "functools", "contextlib", "builtins"})


def modules_behind(function: Callable[..., Any]) -> Iterator[nn.Module]:
    """Find the modules a callable is known to use, each once, the outermost first.

    It is one itself, or names them: as globals, in closures, defaults, partials' arguments,
    containers, attributes of objects, the functions that it calls or wraps. Of an object only the
    attributes that the code names are followed, so that modules of other methods do not count.
    """
    modules: set[int] = set()
    for value in _objects_behind(function):
        if isinstance(value, nn.Module) and id(value) not in modules:
            modules.update(id(part) for part in value.modules())
            yield value


def is_scripted(function: Callable[..., Any]) -> bool:
    """Return whether a callable is known to use TorchScript."""
    return any(
        isinstance(value, torch.jit.ScriptFunction)
        or (
            isinstance(value, nn.Module)
            and any(isinstance(part, torch.jit.ScriptModule) for part in value.modules())
        )
        for value in _objects_behind(function)
    )


def _objects_behind(function: Callable[..., Any]) -> Iterator[object]:
    seen: set[tuple[int, frozenset[str]]] = set()
    queue: deque[tuple[object, frozenset[str]]] = deque([(function, frozenset())])
    alive: list[object] = []  # an id may be used again once its object is gone
    while queue and len(alive) < _MAX_OBJECTS:
        value, names = queue.popleft()
        if (id(value), names) in seen or isinstance(value, _ATOMS):
            continue
        seen.add((id(value), names))
        alive.append(value)
        yield value
        queue.extend(_parts(value, names))


def _parts(value: object, names: frozenset[str]) -> Iterator[tuple[object, frozenset[str]]]:
    """Yield what an object leads to, with the attribute names of the code that uses it."""
    if isinstance(value, nn.Module):
        for part in value.modules():
            inner = _names_of_methods(part, names | _CALLS)
            yield from _methods(part, inner)
            # what is not registered: lists of modules, objects that hold some
            registered = ("_modules", "_parameters", "_buffers")
            plain = {k: v for k, v in vars(part).items() if k in inner and k not in registered}
            yield from ((item, inner) for item in plain.values())
    elif isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, MethodType):
        yield value.__func__, names
        owner, inner = value.__self__, names | _names(value.__func__)
        if isinstance(owner, nn.Module):
            yield owner, inner
        else:  # of which only this method is called
            yield from _parts_of_object(owner, inner)
    elif isinstance(value, functools.partial):
        inner = names | _names(value.func)
        yield value.func, names
        yield from ((part, inner) for part in (*value.args, *value.keywords.values()))
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        items = value.values() if isinstance(value, Mapping) else value
        yield from ((item, names) for item, _ in zip(items, range(_MAX_ITEMS), strict=False))
    elif isinstance(value, staticmethod | classmethod):
        yield value.__func__, names
    elif isinstance(value, property):
        yield value.fget, names
    elif isinstance(value, ModuleType | type):
        if value.__name__.partition(".")[0] not in _LIBRARIES and not _is_of_library(value):
            yield from ((vars(value)[name], names) for name in names if name in vars(value))
    elif isinstance(value, BuiltinFunctionType):
        owner = value.__self__
        if owner is not None and not isinstance(owner, ModuleType):
            yield owner, names
    elif not _is_of_library(type(value)):
        yield from _parts_of_object(value, names | _CALLS)
    for name in ("__wrapped__", "_torchdynamo_orig_callable"):
        if name in getattr(value, "__dict__", {}):
            yield value.__dict__[name], names


def _parts_of_function(function: FunctionType) -> Iterator[tuple[object, frozenset[str]]]:
    names = _names(function)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, names
        except ValueError:  # a variable that was not assigned yet
            continue
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield default, names
    yield from ((value, names) for value in function.__dict__.values())
    if not _is_of_library(function):
        for name in _names_of_code(function.__code__)[0]:
            if name in function.__globals__:
                yield function.__globals__[name], names


def _parts_of_object(
    value: object, names: frozenset[str]
) -> Iterator[tuple[object, frozenset[str]]]:
    names = _names_of_methods(value, names)
    yield from _methods(value, names)
    state = getattr(value, "__dict__", {})
    yield from ((state[name], names) for name in names if name in state)


def _methods(value: object, names: frozenset[str]) -> Iterator[tuple[object, frozenset[str]]]:
    """Yield what the classes of an object define under the names."""
    for kind in type(value).__mro__:
        if not _is_of_library(kind):
            yield from ((vars(kind)[name], names) for name in names if name in vars(kind))


def _names_of_methods(value: object, names: frozenset[str]) -> frozenset[str]:
    """Return the names, and those in the code of the methods that they name, and so on."""
    found = new = names
    while new:
        methods = [inspect.getattr_static(type(value), name, None) for name in new]
        new = frozenset().union(*(_names(method) for method in methods)) - found
        found |= new
    return found


def _names(function: object) -> frozenset[str]:
    """Return the attribute names in a function's code, where it is not a library's."""
    if isinstance(function, staticmethod | classmethod):
        function = function.__func__
    if isinstance(function, property):
        function = function.fget
    if not isinstance(function, FunctionType) or _is_of_library(function):
        return frozenset()
    return _names_of_code(function.__code__)[1]


@functools.lru_cache(maxsize=4096)
def _names_of_code(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of globals and of attributes in a code object and those nested in it."""
    instructions = list(dis.get_instructions(code))
    names = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = {i.argval for i in instructions if i.opname in _ATTRIBUTES}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _names_of_code(constant)
            names, attributes = names | inner[0], attributes | inner[1]
    return frozenset(names), frozenset(attributes)


def _is_of_library(value: object) -> bool:
    name = getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES
