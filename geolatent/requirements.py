"""What every bad-input error says, and checks of plain values; nothing here needs torch."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np


def requirement(name: str, required: str, found: object) -> str:
    """Return the sentence every bad-input error is made of.

    Examples
    --------
    >>> requirement("step", "a positive number", -1)
    'Parameter `step` should be a positive number. Found `step = -1`.'
    """
    return f"Parameter `{name}` should be {required}. Found `{name} = {found}`."


def import_extra(module: str, message: str) -> ModuleType:
    """Import a library that an extra of the package brings, or say what to install.

    Examples
    --------
    >>> import_extra("math", "Counting needs math.").__name__
    'math'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(message) from error


def describe(value: object) -> str:
    """Describe a value for an error message; tensors by shape, dtype and device."""
    # where torch was not imported there are no tensors, and importing it takes seconds
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    if isinstance(value, np.ndarray):
        return f"numpy array of shape {value.shape}, {value.dtype}"
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(describe(item) for item in value[:4])
        return f"{type(value).__name__} of {len(value)} ({inner})"
    return f"object of type {type(value).__name__}"


def returned(name: str, required: str, found: object) -> str:
    """Return the sentence for a callable that returns something else than is required of it."""
    return requirement(name, f"a callable returning {required}", f"one returning {describe(found)}")


def check_integer(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as an int that is at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(requirement(name, f"an integer of at least {minimum}", describe(value)))
    if value < minimum:
        raise ValueError(requirement(name, f"an integer of at least {minimum}", value))
    return int(value)


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return ``value`` as a finite float within the given bounds."""
    bounds = (("above", above), ("at least", at_least), ("at most", at_most))
    words = [f"{word} {bound}" for word, bound in bounds if bound is not None]
    required = f"a finite number {' and '.join(words)}".strip()
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(requirement(name, required, describe(value)))
    number = float(value)
    if (
        not math.isfinite(number)
        or (above is not None and number <= above)
        or (at_least is not None and number < at_least)
        or (at_most is not None and number > at_most)
    ):
        raise ValueError(requirement(name, required, value))
    return number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return ``value``, one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(requirement(name, f"one of {', '.join(choices)}", describe(value)))
    return value


def check_boolean(name: str, value: object) -> bool:
    """Return ``value``, true or false."""
    if not isinstance(value, bool):
        raise TypeError(requirement(name, "true or false", describe(value)))
    return value


def check_sizes(name: str, values: object) -> tuple[int, ...]:
    """Return ``values``, positive integers, one at least."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(requirement(name, "a sequence of positive integers", describe(values)))
    return tuple(check_integer(name, value) for value in values)


def check_selection(classes: Sequence[int] | None, per_class: int | None, seed: int) -> None:
    """Raise where the labels to keep, or the number to draw of each, cannot be."""
    if classes is not None:
        if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
            required = "a sequence of labels, or None for all"
            raise ValueError(requirement("classes", required, describe(classes)))
        for label in classes:
            check_integer("classes", label, minimum=0)
        if len(set(classes)) != len(classes):
            raise ValueError(requirement("classes", "different labels", tuple(classes)))
    if per_class is not None:
        check_integer("per_class", per_class)
    check_integer("seed", seed, minimum=0)
