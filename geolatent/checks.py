"""Input checks: every message names the argument, what was required and what was found.

Codes, and what goes with them, come through one door, `check_tensor`: tensors, or NumPy arrays and
all else that has ``__array__``. Either are brought to the dtype and device of the parameters of the
metric's functions, where there are any (`parameter_behind`), or of the graph's codes where a graph
is asked, and keep their own where there are none; results are tensors of that dtype and device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from geolatent.arrays import as_tensor
from geolatent.callables import modules_behind
from geolatent.requirements import (
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    check_sizes,
    describe,
    requirement,
    returned,
)

__all__ = [
    "check_alike",
    "check_batch",
    "check_boolean",
    "check_box",
    "check_choice",
    "check_codes",
    "check_function",
    "check_integer",
    "check_number",
    "check_pairs",
    "check_placement",
    "check_sizes",
    "check_tensor",
    "check_unquantised",
    "check_vectors",
    "describe",
    "parameter_behind",
    "requirement",
    "returned",
]


def check_tensor(
    name: str, value: object, shape: str, *, like: Tensor | None = None, empty: bool = False
) -> Tensor:
    """Return ``value``, as a finite floating-point tensor of a shape such as "(d,) or (B, 3)".

    Letters stand for any size but 0, "..." for any number of axes; ``empty`` says whether the batch
    may be. Arrays are copied into tensors; both are brought to the dtype and device of ``like``.
    """
    tensor = as_tensor(value)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        required = f"a floating-point tensor or array of shape {shape}"
        raise TypeError(requirement(name, required, describe(value)))
    fits = any(_fits(tensor.shape, each) for each in shape.split(" or "))
    if not fits or 0 in tensor.shape[int(empty) :]:
        required = f"a tensor of shape {shape}"
        if tensor.ndim > 2 and re.search(r"\bd\b", shape):
            required += " (codes of other shapes: `codes.flatten(1)`, and for what decodes them "
            required += "`geolatent.adapters.decoder(function, shape=...)`)"
        raise ValueError(requirement(name, required, describe(value)))
    tensor = tensor if like is None else tensor.to(like)
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        found = f"{describe(tensor)} with {bad} values that are NaN or infinite"
        raise ValueError(requirement(name, "finite", found))
    return tensor


def parameter_behind(*functions: Callable[..., Any]) -> Tensor | None:
    """Return a parameter of the modules that functions use, whose dtype and device codes take.

    The first of single or double precision. Half precision is for values and holds no codes, and
    nothing can be computed on the meta device.
    """
    for function in functions:
        for module in modules_behind(function):
            for parameter in module.parameters():
                if parameter.dtype in (torch.float32, torch.float64) and not parameter.is_meta:
                    return parameter.detach()
    return None


def _fits(found: torch.Size, shape: str) -> bool:
    """Return whether a tensor's shape is a required one, as `check_tensor` has it in words."""
    pattern = ""
    for size in shape.strip("()").replace(" ", "").rstrip(",").split(","):
        if size == "...":
            pattern += r"(\d+,)*"
        else:
            pattern += (size if size.isdigit() else r"\d+") + ","
    return re.fullmatch(pattern, "".join(f"{size}," for size in found)) is not None


def check_codes(
    name: str, value: object, dim: int | None = None, *, like: Tensor | None = None
) -> Tensor:
    """Return ``value``, latent codes of shape (n, d)."""
    return check_tensor(name, value, f"(n, {'d' if dim is None else dim})", like=like)


def check_batch(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise where a tensor within a computation is not of shape (n, *shape)."""
    if value.ndim == 0 or value.shape[1:] != shape:
        required = f"a tensor of shape (n, {', '.join(map(str, shape))})"
        raise ValueError(requirement(name, required, describe(value)))


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise where two tensors differ in dtype or device."""
    if value.dtype != other.dtype:
        raise TypeError(
            requirement(name, f"of the dtype of `{other_name}`, {other.dtype}", describe(value))
        )
    if value.device != other.device:
        raise ValueError(
            requirement(name, f"on the device of `{other_name}`, {other.device}", describe(value))
        )


def check_vectors(name: str, value: object, codes: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Return ``value``, a vector for each of the codes `z`, (n, d)."""
    vectors = check_codes(name, value, codes.shape[1], like=like)
    check_alike(name, vectors, "z", codes)
    if vectors.shape != codes.shape:
        required = f"of the shape of `z`, {tuple(codes.shape)}"
        raise ValueError(requirement(name, required, describe(vectors)))
    return vectors


def check_pairs(
    start: object,
    end: object,
    dim: int | None = None,
    names: tuple[str, str] = ("start", "end"),
    *,
    like: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the end points of curves as two tensors of one shape (B, d), broadcast together."""
    d = "d" if dim is None else dim
    first, last = (
        torch.atleast_2d(check_tensor(name, value, f"({d},) or (B, {d})", like=like))
        for name, value in zip(names, (start, end), strict=True)
    )
    check_alike(names[1], last, names[0], first)
    sizes = {first.shape[0], last.shape[0]} - {1}
    if first.shape[1] != last.shape[1] or len(sizes) > 1:
        required = f"a tensor that broadcasts with `{names[0]}`, of shape {tuple(first.shape)}"
        raise ValueError(requirement(names[1], required, describe(last)))
    first, last = torch.broadcast_tensors(first, last)
    return first.detach().clone(), last.detach().clone()


def check_box(
    low: object, high: object, dim: int | None = None, *, like: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the corners of a box in the latent space, (d,) each."""
    first = check_tensor("low", low, f"({'d' if dim is None else dim},)", like=like).detach()
    last = check_tensor("high", high, f"({first.numel()},)", like=like).detach()
    check_alike("high", last, "low", first)
    if not bool((last > first).all()):
        required = f"above `low` ({first.tolist()}) in every dimension"
        raise ValueError(requirement("high", required, last.tolist()))
    return first, last


def _mixes_rows_or_is_random(module: nn.Module) -> bool:
    """Return whether a layer in training mode is not a function of each row by itself."""
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return float(module.dropout) > 0.0
    counting = isinstance(module, _NormBase) and module.track_running_stats
    return counting or isinstance(module, _BatchNorm | _DropoutNd | nn.RReLU)


def check_function(name: str, function: object) -> Callable[..., Any]:
    """Return ``function``, a callable whose modules treat every row of a batch by itself.

    BatchNorm and Dropout in training mode make a row's output depend on the rest of the batch or on
    chance, so that no metric is defined.
    """
    if not callable(function):
        raise TypeError(requirement(name, "callable", describe(function)))
    for module in modules_behind(function):
        for path, part in module.named_modules():
            label = f"{type(part).__name__} `{path}`" if path else type(part).__name__
            training = getattr(part, "training", False)  # a frozen scripted module has no mode
            if isinstance(part, _BatchNorm) and not training and part.running_mean is None:
                required = "free of BatchNorm without running statistics, which mixes the rows"
                raise ValueError(requirement(name, required, label))
            if training and _mixes_rows_or_is_random(part):
                required = f"in evaluation mode: call `{name}.eval()` first"
                raise ValueError(requirement(name, required, f"{label} in training mode"))
    return function


def check_unquantised(name: str, function: Callable[..., Any]) -> None:
    """Raise where a module behind a callable has integers for weights: its values are steps."""
    for module in modules_behind(function):
        for label, value in module.state_dict().items():
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, Tensor) and part.is_quantized for part in parts):
                required = "the floating-point model: one that was quantised has no derivatives"
                found = f"one with quantised weights, `{label}`"
                raise ValueError(requirement(name, required, found))


@dataclass(frozen=True)
class Buffers:
    """Buffers of the modules behind a callable, as they were: (label, module, name, tensor, copy).

    A call that changes one, as running statistics, depends on the calls before.
    """

    kept: list[tuple[str, nn.Module, str, Tensor, Tensor]]

    @classmethod
    def behind(cls, function: Callable[..., Any]) -> Buffers:
        """Keep copies."""
        kept = []
        for module in modules_behind(function):
            for path, part in module.named_modules():
                for name, tensor in part.named_buffers(recurse=False):
                    if not tensor.is_meta:
                        label = f"{path}.{name}" if path else name
                        kept.append((label, part, name, tensor, tensor.detach().clone()))
        return cls(kept)

    def restore(self) -> list[str]:
        """Undo all changes; return the labels of the buffers that had changed."""
        changed = []
        for label, module, name, tensor, copy in self.kept:
            now = getattr(module, name, None)
            same = isinstance(now, Tensor) and now.shape == copy.shape
            if same and bool(((now == copy) | ((now != now) & (copy != copy))).all()):
                continue
            changed.append(f"{type(module).__name__} `{label}`")
            with torch.no_grad():
                tensor.copy_(copy)
            if now is not tensor:
                setattr(module, name, tensor)
        return changed


def check_placement(
    name: str, function: Callable[..., Any], codes_name: str, codes: Tensor
) -> None:
    """Raise where the parameters of the modules behind a callable and the codes cannot meet."""
    for module in modules_behind(function):
        for label, parameter in module.named_parameters():
            if parameter.device != codes.device:
                required = f"on the device of `{name}` ({parameter.device}, parameter `{label}`)"
                raise ValueError(requirement(codes_name, required, describe(codes)))
            if parameter.is_floating_point() and parameter.dtype != codes.dtype:
                required = f"of the dtype of `{name}` ({parameter.dtype}, parameter `{label}`)"
                raise TypeError(requirement(codes_name, required, describe(codes)))
