"""NumPy arrays on the way in, as tensors, and results on the way out, as arrays."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from geolatent.shapes import CodeShape

# what codes may be
Array: TypeAlias = Tensor | NDArray[np.floating[Any]]


def as_tensor(value: object) -> object:
    """Return arrays of floating-point numbers as tensors of that precision, and all else as it is.

    An array is what has ``__array__``, as those of NumPy and pandas have. It is copied.
    """
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    if array.dtype.kind != "f":
        return value
    # in this machine's order of bytes; torch has no numbers beyond 8 of them
    return torch.from_numpy(np.array(array, dtype=f"=f{min(array.dtype.itemsize, 8)}", order="C"))


class Result:
    """A dataclass of tensors, of numbers and of other results, which can be had as arrays."""

    # the fields that hold codes, (..., d), or results that do
    with_codes: ClassVar[tuple[str, ...]] = ()

    def shaped(self, shape: CodeShape) -> Self:
        """Return the same, its codes in a shape of their own, (..., *shape)."""
        parts = {name: shape.back(getattr(self, name)) for name in self.with_codes}
        return replace(self, **parts)  # type: ignore[type-var]

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return the fields as NumPy arrays by their names, parts' as ``"part.field"``.

        Those that are None are left out.

        On the processor arrays share their memory with the tensors.

        Examples
        --------
        >>> from geolatent import CubicBSpline
        >>> curve = CubicBSpline.straight(torch.zeros(2), torch.ones(2))
        >>> {name: array.shape for name, array in curve.numpy().items()}
        {'control_points': (1, 4, 2), 'knots': (8,)}
        """
        found: dict[str, NDArray[Any]] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Result):
                found |= {f"{field.name}.{name}": part for name, part in value.numpy().items()}
            elif value is not None:
                tensor = isinstance(value, Tensor)
                found[field.name] = value.numpy(force=True) if tensor else np.asarray(value)
        return found
