"""The words of a command line: what they may be, what was meant, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from geolatent.requirements import requirement

# options that there were, and what takes their place
_MOVED = {
    "solver.method": "the solver is given by its class: solver: {class_path: "
    "geolatent.GEORCESolver}, or --solver GEORCESolver; georce is GEORCESolver, michelis_becker "
    "geolatent.FirstOrderSolver.michelis_becker, preconditioned PreconditionedSolver",
    "solver.length_tolerance": "it is `length_tolerance`, an option of the command",
    "solver.batch_size": "it is `batch_size`, an option of the command",
    "solver.max_rows": "it is `max_rows`, an option of the command",
    "out_dir": "the folder is given by `out`, as of all commands: out: FOLDER, or --out FOLDER",
    "resume": "an interrupted training is gone on with by the same options on its folder",
}
# letters of a wrong value that are told
_LONGEST = 100
_SIMPLE = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "null",
}


def option_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the dotted names of a command's options, with their types.

    Examples
    --------
    >>> from geolatent.lab.config import InitialOptions
    >>> def command(initial: InitialOptions, steps: tuple[float, ...]): ...
    >>> list(option_types(command))[:3], option_types(command)["steps"]
    (['initial', 'initial.kind', 'initial.resolution'], tuple[float, ...])
    """
    found: dict[str, Any] = {}

    def add(prefix: str, hints: Mapping[str, Any]) -> None:
        for name, kind in hints.items():
            found[prefix + name] = kind
            for part in (kind, *get_args(kind)):
                if dataclasses.is_dataclass(part):
                    add(f"{prefix}{name}.", get_type_hints(part))

    hints = get_type_hints(function)
    hints.pop("return", None)
    add("", hints)
    return found


def complete_words(words: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Return words as the parser takes them.

    Dashes in names stand for underscores, ``--overwrite`` for ``--overwrite true``, and values with
    commas between them for a list.

    Examples
    --------
    >>> kinds = {"n_pairs": int, "steps": tuple[float, ...], "overwrite": bool}
    >>> complete_words(["--n-pairs", "3", "--steps", "1,2", "--overwrite"], kinds)
    ['--n_pairs', '3', '--steps', '[1,2]', '--overwrite', 'true']
    """
    completed: list[str] = []
    expected: Any = None  # the type of the word that follows a name
    for place, word in enumerate(words):
        if not word.startswith("--"):
            completed.append(_as_list(word, expected))
            expected = None
            continue
        name, equals, value = word[2:].partition("=")
        if name not in kinds and name.replace("-", "_") in kinds:
            name = name.replace("-", "_")
        kind = kinds.get(name)
        if equals:
            value = _as_list(value, kind)
        completed.append(f"--{name}{equals}{value}")
        expected = None if equals else kind
        following = words[place + 1] if place + 1 < len(words) else ""
        if kind is bool and not equals and following.lower() not in ("true", "false"):
            completed.append("true")
    return completed


def _as_list(value: str, kind: Any) -> str:
    """Put brackets around the values of a list, but not around null or what has them."""
    lists = [get_origin(member) in (tuple, list) for member in _members(kind)]
    # a lone value may be taken as it is, such as one format
    alone = not all(
        listed or member is type(None) for listed, member in zip(lists, _members(kind), strict=True)
    )
    if not any(lists) or (alone and "," not in value):
        return value
    if value.strip().startswith("[") or value.strip() in ("", "~", "null", "none", "None"):
        return value
    return f"[{value}]"


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like another, or None.

    Examples
    --------
    >>> closest("solver.tolerence", ["solver", "solver.tolerance", "seed"])
    'solver.tolerance'
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def what_is_wrong(message: str, kinds: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return jsonargparse's message in a line, and the option in it that there is not, if any.

    ``kinds`` are the options and their types.
    """
    # the keys of an object's settings are told one in the other
    outer = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    inside = "Problem with given class_path" in message
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown and inside:
        return _no_option(f"{outer}.{unknown[1]}")
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        word = unknown[1].partition("=")[0]
        if not word.startswith("-"):
            return f"no option takes the word `{word}`; options begin with --.", None
        return _no_option(word.lstrip("-"), word)
    unknown = re.search(r"(?:Group '(.+)' does not accept option|Option) '([^']+)'", message)
    if unknown:
        return _no_option(".".join(part for part in unknown.groups() if part))
    wrong = re.search(r'Parser key "([^"]+)"', message)
    key = outer if inside else wrong[1] if wrong else ""
    value = re.search(r".*(?:Given|Got) value: (.*)", message, re.DOTALL)
    if value and "Unexpected keys" not in message and in_words(kinds.get(key)):
        found = textwrap.shorten(value[1], _LONGEST, placeholder=" ...")[:_LONGEST]
        return requirement(key, in_words(kinds[key]), found), None
    return re.sub(r'Parser key ("[^"]+")', r"option \1", " ".join(message.split())), None


def _no_option(name: str, word: str | None = None) -> tuple[str, str | None]:
    """Say that there is no option of a name, and what takes the place of one that there was."""
    moved = _MOVED.get(name.replace("-", "_"))
    if moved:
        return f"no option `{word or name}`: {moved}.", None
    return f"no option `{word or name}`.", name


def in_words(kind: Any) -> str:
    """Return what a type asks for, in words; nothing where it is too involved.

    Examples
    --------
    >>> in_words(tuple[float, ...] | None), in_words(Literal["auto", "exact"])
    ('a list of numbers or null', 'one of auto, exact')
    """
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (tuple, list):
        each = _SIMPLE.get(get_args(kind)[0], "")
        return f"a list of {each.split()[-1]}s" if each else "a list"
    if get_origin(kind) is dict:
        return "names and their values"
    members = _members(kind)
    if len(members) > 1:
        texts = [in_words(member) for member in members]
        return " or ".join(texts) if all(texts) else ""
    return _SIMPLE.get(kind, "")
