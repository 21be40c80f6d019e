"""Forward-mode differentiation, of which torch has one for a whole process, from any thread.

Torch counts the open levels of forward mode for the process, but keeps the transforms that a
function runs under for each thread: two threads that differentiate at once write into each other's
level, and their tangents are wrong or vanish. So one thread at a time goes in here.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from geolatent.metrics.forward_rules import ForwardRules

# held by whoever differentiates in forward mode, or decides whether a function can be
LOCK = threading.RLock()

_rules_loaded = False


class TakenError(RuntimeError):
    """Forward mode is in use by a thread that knows nothing of the lock."""


def taken() -> bool:
    """Return whether a level is open that is not of this thread's own transforms."""
    own = sum(entry.key() == TransformType.Jvp for entry in get_interpreter_stack() or ())
    level_open = forward_ad._current_level >= 0
    return own != eager_transforms.JVP_NESTING or level_open != (own > 0)


def is_transformed() -> bool:
    """Return whether this thread is inside a transform of torch.func."""
    return bool(get_interpreter_stack())


def jvp(function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(z) and J_f(z) v.

    Raises
    ------
    TakenError
        Where somebody else's level is open: the products would not be known to be right.
    """

    def alone(point: Tensor) -> Tensor:
        # somebody may have come in between the first look and the level's opening
        if taken():
            raise TakenError("forward mode is in use by another thread")
        with ForwardRules():
            return function(point)

    with LOCK:
        if taken():
            raise TakenError("forward mode is in use by another thread")
        _load_rules()
        # tangents are laid out as their codes, of which expanded ones share their memory
        value, product = torch.func.jvp(alone, (z.contiguous(),), (_attached(v, z),))[:2]
    return value, product


def _attached(v: Tensor, z: Tensor) -> Tensor:
    """Return v as what depends on z too, with a derivative of zero.

    Where J_f is constant a product with it would not, and asking for its gradient would be an
    error. No number of z comes in: they may be infinite.
    """
    if not (z.requires_grad and torch.is_grad_enabled()):
        return v
    return v + torch.where(torch.zeros_like(z, dtype=torch.bool), z, 0.0)


def _load_rules() -> None:
    """Let torch load its forward-mode rules, which warns of torch's own use of torch.jit.

    Under the lock. The filter is put in and taken out by itself: `warnings.catch_warnings` would
    put back the filters of then, and undo what other threads did in the meantime.
    """
    global _rules_loaded
    if _rules_loaded:
        return
    message = "`?torch.jit"
    warnings.filterwarnings("ignore", message, FutureWarning)
    try:
        one = torch.ones(1)
        torch.func.jvp(torch.sin, (one,), (one,))
    finally:
        with contextlib.suppress(ValueError):
            warnings.filters.remove(  # type: ignore[attr-defined]
                ("ignore", re.compile(message, re.IGNORECASE), FutureWarning, None, 0)
            )
    _rules_loaded = True
