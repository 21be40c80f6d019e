"""Docstrings of the package are plain text; Sphinx takes them for reStructuredText."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"(`+[^`]+`+)")
_SECTION = re.compile(r"^-{3,}\s*$")


def as_restructured_text(
    _app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Escape signs that mean something in reStructuredText; what is indented is literal.

    In text ``|v|`` and ``(n, *shape)`` are formulas. Paragraphs that are indented before the first
    section are formulas too and stay as they are; directives, ``.. math::`` among them, are left.
    """
    first = next((i - 1 for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    result: list[str] = []
    inside = ""  # of an indented paragraph: what it is
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            inside = "directive" if line.startswith(".. ") else ""
        elif indented and number < first and not inside and result[-1:] != [""]:
            inside = "continued"
        elif indented and number < first and not inside:
            result += ["::", ""]
            inside = "formula"
        elif indented and line.lstrip().startswith(".. "):
            inside = "directive"
        literal = inside in ("directive", "formula") or line.lstrip().startswith((">>>", "... "))
        result.append(line if literal else _escaped(line))
    lines[:] = result


def _escaped(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts
    )


def skip_foreign(
    _app: object, _what: str, _name: str, obj: Any, skip: bool, _options: object
) -> bool | None:
    """Leave out methods that come from classes of other libraries."""
    function = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    if not callable(function) and not isinstance(obj, property):
        return None
    module = getattr(function, "__module__", None) or ""
    return None if skip or module.startswith("geolatent") else True


def public_bases(
    _app: object, _name: str, _obj: object, _options: object, bases: list[type]
) -> None:
    """Put the public bases of private classes into their place."""
    while private := next((base for base in bases if base.__name__.startswith("_")), None):
        place = bases.index(private)
        above = [base for base in private.__bases__ if base not in bases]
        bases[place : place + 1] = above
